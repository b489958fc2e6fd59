"""The pipeline equals one device: outputs, loss, every gradient and buffer, for every K, M, schedule and shape."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import BasicUNet, DynUNet
from tests.ranks import run_ranks, sub_world
from torch import Tensor, nn

from lampseg.networks import SEUNet, UNet
from lampseg.parallel.pipeline import PipelineRunner
from lampseg.parallel.state import hold, named_state, owners_of
from lampseg.partition import Training, make_plan, place, record_for

CLASSES = 3


def dyn_unet(**options: Any) -> nn.Module:
    return DynUNet(3, 1, CLASSES, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8], **options)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: UNet(out_channels=CLASSES, filters=4, depth=2),
    "unet-instance": lambda: UNet(out_channels=CLASSES, filters=4, depth=2, norm="instance", stem_stride=1),
    "seunet": lambda: SEUNet(out_channels=CLASSES, filters=4, depth=2),
    "dynunet": dyn_unet,
    "dynunet-deep": lambda: dyn_unet(deep_supervision=True, deep_supr_num=1),
    "basicunet": lambda: BasicUNet(3, 1, CLASSES, features=(4, 4, 8, 8, 8, 4), dropout=0.2),
    "basicunet-batch": lambda: BasicUNet(3, 1, CLASSES, features=(4, 4, 8, 8, 8, 4), norm="batch"),
}
EVEN = [(1, 1, 16, 16, 16)] * 4
MIXED = [(1, 1, 16, 16, 24), (2, 1, 16, 24, 16), (1, 1, 24, 16, 16), (1, 1, 16, 16, 16)]
# BasicUNet halves four times and pads odd sizes itself, so that its operations differ between these shapes.
LARGE = [(1, 1, 32, 32, 32)] * 4
ODD = [(1, 1, 33, 37, 35), (1, 1, 34, 32, 36), (2, 1, 32, 33, 32), (1, 1, 37, 32, 33)]
TOLERANCE = 1e-9


def build(name: str) -> nn.Module:
    torch.manual_seed(7)
    return NETWORKS[name]().double()


def inputs(shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def loss_of(output: Any, m: int, count: int) -> Tensor:
    leaves = [output] if isinstance(output, Tensor) else list(output)
    total = torch.zeros((), dtype=torch.float64)
    for leaf in leaves:
        target = torch.arange(leaf[:, 0].numel()).reshape(leaf[:, 0].shape) % CLASSES if leaf.dim() == 5 else None
        term = F.cross_entropy(leaf, target) if target is not None else leaf.square().mean()
        total = total + term
    return total / count


def one_device(name: str, shapes: Sequence[tuple[int, ...]]) -> dict[str, Any]:
    """Plain PyTorch: no lampseg but for the network."""
    network, data = build(name), inputs(shapes)
    loss = 0.0
    for m, x in enumerate(data):
        term = loss_of(network(x), m, len(data))
        term.backward()
        loss += float(term.detach())
    result = {
        "loss": loss,
        "gradients": {key: p.grad for key, p in network.named_parameters()},
        "buffers": dict(network.named_buffers()),
    }
    network.eval()
    with torch.no_grad():
        result["outputs"] = [network(x) for x in data]
    return result


def split(rank: int, worlds: dict[int, Any], case: dict[str, Any]) -> dict[str, Any] | None:
    """The same on the first K ranks."""
    world = worlds[case["stages"]]
    if world is None:
        return None
    network, shapes = build(case["network"]), case["shapes"]
    training = Training(len(shapes), case["schedule"], case["recompute"])
    shape = case.get("planned_on", shapes[0])
    plan = make_plan(network, shape=shape, stages=world.size, training=training, precision="float64")
    placement = place(record_for(network, shape=shape, precision="float64", device="cpu"), plan.cuts)
    owned = [key for key, owner in owners_of(network, placement).items() if owner == rank]
    hold(network, owned=owned, device=world.device)
    runner = PipelineRunner(
        network,
        placement,
        world=world,
        precision="float64",
        schedule=case["schedule"],
        recompute=case["recompute"],
    )
    data = inputs(shapes)
    losses = runner.step(shapes, load=lambda m: data[m], loss=lambda m, out: loss_of(out, m, len(shapes)))
    result: dict[str, Any] = {"owned": owned}
    if world.last:
        result["loss"] = sum(losses)
    result["gradients"] = {key: p.grad for key, p in network.named_parameters() if key in owned}
    result["buffers"] = {key: b for key, b in network.named_buffers() if key in owned}
    assert all(t.is_meta == (key not in owned) for key, t in named_state(network).items())
    network.eval()
    outputs = list(runner.predict(shapes, load=lambda m: data[m]))
    if world.last:
        result["outputs"] = outputs
    return result


def all_cases(rank: int, cases: list[dict[str, Any]]) -> list[Any]:
    worlds = {size: sub_world(size) for size in (1, 2, 3, 4)}
    return [split(rank, worlds, case) for case in cases]


def assert_equal(expected: dict[str, Any], ranks: list[dict[str, Any] | None], label: str) -> None:
    merged: dict[str, Any] = {"gradients": {}, "buffers": {}}
    owned: list[str] = []
    for result in ranks:
        if result is None:
            continue
        owned += result["owned"]
        for key in ("gradients", "buffers"):
            merged[key] |= result[key]
        merged |= {key: result[key] for key in ("loss", "outputs") if key in result}
    assert len(owned) == len(set(owned)), f"{label}: a tensor has two owners"
    assert abs(merged["loss"] - expected["loss"]) < TOLERANCE, label
    scale = max(float(g.abs().max()) for g in expected["gradients"].values() if g is not None)
    assert merged["gradients"].keys() == expected["gradients"].keys(), label
    for key, gradient in expected["gradients"].items():
        actual = merged["gradients"][key]
        if gradient is None:
            assert actual is None, f"{label}: {key}"
        else:
            assert float((actual - gradient).abs().max()) <= TOLERANCE * scale, f"{label}: gradient of {key}"
    assert merged["buffers"].keys() == expected["buffers"].keys(), label
    for key, buffer in expected["buffers"].items():
        torch.testing.assert_close(merged["buffers"][key], buffer, rtol=0, atol=TOLERANCE, msg=f"{label}: {key}")
    for actual, wanted in zip(merged["outputs"], expected["outputs"], strict=True):
        torch.testing.assert_close(actual, wanted, rtol=0, atol=TOLERANCE, msg=f"{label}: output")


def cases_of(name: str) -> list[dict[str, Any]]:
    cases = []
    even, uneven = (LARGE, ODD) if name.startswith("basicunet") else (EVEN, MIXED)
    for stages in (1, 2, 3, 4):
        for count, shapes in ((1, even), (2, even), (4, uneven)):
            for schedule in ("gpipe", "1f1b"):
                recompute = ("none", "all_but_last", "all")[(stages + count) % 3]
                cases.append(
                    {
                        "network": name,
                        "stages": stages,
                        "shapes": shapes[:count],
                        "schedule": schedule,
                        "recompute": recompute,
                    }
                )
    return cases


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "basicunet"])
def test_equals_one_device(name: str) -> None:
    cases = cases_of(name)
    ranks = run_ranks(all_cases, 4, cases, timeout=240)
    references: dict[str, dict[str, Any]] = {}
    for n, case in enumerate(cases):
        key = str(case["shapes"])
        if key not in references:
            references[key] = one_device(name, case["shapes"])
        assert_equal(references[key], [copy.copy(result[n]) for result in ranks], str(case))

"""One device of a small network under test, as a thread or as a process: runs one step and returns what it holds."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lampseg.parallel.mesh import Mesh
from lampseg.parallel.pipeline import PipelineRunner, places_of
from lampseg.parallel.state import hold, owners_of
from lampseg.partition import place, record_for
from lampseg.partition.plan import Choices, Recompute
from lampseg.partition.schedule import Pace, Schedule


def loss_of(output: Any) -> Tensor:
    """Something of every output tensor, different for every element."""
    total = torch.zeros((), dtype=torch.float64)
    for leaf in tree_leaves(output):
        if leaf.is_floating_point():
            total = total + (leaf.double() * torch.arange(leaf.numel()).reshape(leaf.shape).cos()).square().mean()
    return total


def choices_of(
    mesh: Mesh,
    cuts: Sequence[int],
    schedule: Schedule = "1f1b",
    recompute: Recompute | Sequence[Recompute] = "none",
    *,
    micro_batches: int = 1,
    limit: int | None = None,
) -> Choices:
    """A plan's choices; `recompute` of all stages or of each."""
    each = (recompute,) * (len(cuts) + 1) if isinstance(recompute, str) else tuple(recompute)
    return Choices(mesh.devices, mesh.replicas, micro_batches, schedule, tuple(cuts), each, limit)  # type: ignore[arg-type]


def runner_of(
    mesh: Mesh,
    network: nn.Module,
    choices: Choices,
    *,
    shape: tuple[int, ...],
    precision: str = "float32",
    pace: Pace | None = None,
) -> tuple[PipelineRunner, list[str]]:
    """The runner of my device, and the names of what it holds; the rest of the network goes to meta."""
    placement = place(record_for(network, shape=shape, precision=precision, device="cpu"), choices.cuts)
    places = places_of(choices)
    owned = [name for name, stage in owners_of(network, placement).items() if places[stage] == mesh.device]
    hold(network, owned=owned, device=mesh.world.device)
    runner = PipelineRunner(network, placement, mesh=mesh, choices=choices, pace=pace, precision=precision)
    return runner, owned


def run_device(
    mesh: Mesh,
    network: nn.Module,
    cuts: Sequence[int],
    data: Sequence[Tensor],
    schedule: Schedule = "1f1b",
    recompute: Recompute | Sequence[Recompute] = "none",
    pace: Pace | None = None,
    limit: int | None = None,
    predicted: int | None = None,
) -> dict[str, Any]:
    """A training step and a prediction (of the first few only, if `predicted`); the network is float64."""
    shapes = [tuple(x.shape) for x in data]
    choices = choices_of(mesh, cuts, schedule, recompute, micro_batches=len(data), limit=limit)
    runner, owned = runner_of(mesh, network, choices, shape=shapes[0], precision="float64", pace=pace)
    losses = runner.step(shapes, load=lambda m: data[m].clone(), loss=lambda m, out: loss_of(out), seed=5)
    result: dict[str, Any] = {
        "gradients": {name: p.grad for name, p in network.named_parameters() if name in owned},
        "buffers": {name: b.clone() for name, b in network.named_buffers() if name in owned},
    }
    network.eval()
    outputs = list(runner.predict(shapes[:predicted], load=lambda m: data[m].clone()))
    return result | ({"losses": losses, "outputs": outputs} if runner.yields_output else {})


def run_whole(network: nn.Module, data: Sequence[Tensor], predicted: int | None = None) -> dict[str, Any]:
    """The same in plain PyTorch."""
    losses = []
    for x in data:
        loss = loss_of(network(x.clone()))
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
    result: dict[str, Any] = {
        "losses": losses,
        "gradients": {name: p.grad for name, p in network.named_parameters()},
        "buffers": {name: b.clone() for name, b in network.named_buffers()},
    }
    network.eval()
    with torch.no_grad():
        return result | {"outputs": [network(x.clone()) for x in data[:predicted]]}


def together(devices: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the devices hold, as of one."""
    whole: dict[str, Any] = {key: value for device in devices for key, value in device.items()}
    for part in ("gradients", "buffers"):
        whole[part] = {name: tensor for device in devices for name, tensor in device[part].items()}
    return whole


def assert_same(actual: dict[str, Any], expected: dict[str, Any], *, label: str, tolerance: float = 1e-9) -> None:
    for part in ("losses", "buffers", "outputs"):
        torch.testing.assert_close(
            actual[part], expected[part], rtol=tolerance, atol=tolerance, msg=lambda text: f"{label}: {text}"
        )
    assert actual["gradients"].keys() == expected["gradients"].keys(), label
    largest = max(float(gradient.abs().max()) for gradient in expected["gradients"].values() if gradient is not None)
    for name, gradient in expected["gradients"].items():
        found = actual["gradients"][name]
        assert (found is None) == (gradient is None), f"{label}: gradient of {name}"
        if gradient is not None:
            assert float((found - gradient).abs().max()) <= tolerance * largest, f"{label}: gradient of {name}"

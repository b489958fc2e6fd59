"""Every function that slabs know, one by one: values, and gradients of inputs and parameters, equal the whole's."""

from collections.abc import Callable
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._pytree import tree_leaves

from lampseg.parallel.spatial import SpatialParallel, convolution
from lampseg.parallel.spatial.ends import ends_of
from lampseg.parallel.spatial.layout import layout_of
from tests.equivalence.spatial_cases import loss_functions
from tests.ranks import run_ranks

pytestmark = pytest.mark.timeout(200)

CHANNELS = 4
Function = Callable[[Tensor, Callable[..., Tensor]], Any]
"""Of the input (2, 4, 12, 8, 6) and a maker of parameters of given shapes."""


def conv(kernel: Any, **options: Any) -> Function:
    groups = options.get("groups", 1)
    k = (kernel,) * 3 if isinstance(kernel, int) else kernel
    return lambda x, p: F.conv3d(
        x, p(6 if groups == 1 else 8, CHANNELS // groups, *k), p(6 if groups == 1 else 8), **options
    )


def transposed(kernel: int, **options: Any) -> Function:
    return lambda x, p: F.conv_transpose3d(x, p(CHANNELS, 3, *(kernel,) * 3), p(3), **options)


def reflecting(x: Tensor, weight: Tensor) -> Tensor:
    """A module's own padding, which is a function before the convolution."""
    module = nn.Conv3d(CHANNELS, 2, 3, padding=1, padding_mode="reflect", bias=False)
    del module.weight
    module.weight = weight  # type: ignore[assignment]
    out: Tensor = module(x)
    return out


FUNCTIONS: dict[str, Function] = {
    "conv3": conv(3, padding=1),
    "conv3 valid": conv(3),
    "conv5 same": conv(5, padding="same"),
    "conv1": conv(1),
    "conv (1, 3, 3)": conv((1, 3, 3), padding=(0, 1, 1)),
    "conv3 stride 2": conv(3, stride=2, padding=1),
    "conv2 stride 2": conv(2, stride=2),
    "conv4 stride 2": conv(4, stride=2, padding=1),
    "conv7 stride 4": conv(7, stride=4, padding=3),
    "conv1 stride 2": conv(1, stride=2),
    "conv3 dilation 2": conv(3, padding=2, dilation=2),
    "conv3 dilation 3 stride 2": conv(3, padding=3, dilation=3, stride=2),
    "conv3 groups": conv(3, padding=1, groups=2),
    "conv3 wide padding": conv(3, padding=2),
    "transposed2": transposed(2, stride=2),
    "transposed3": transposed(3, stride=2, padding=1, output_padding=1),
    "transposed3 bare": transposed(3, stride=2),
    "transposed4": transposed(4, stride=2, padding=1),
    "transposed4 stride 4": transposed(4, stride=4),
    "transposed3 stride 1": transposed(3, padding=1),
    "transposed3 dilation": transposed(3, padding=2, dilation=2),
    "max_pool2": lambda x, p: F.max_pool3d(x, 2),
    "max_pool3": lambda x, p: F.max_pool3d(x, 3, 2, 1),
    "max_pool3 stride 1": lambda x, p: F.max_pool3d(x, 3, 1, 1),
    "avg_pool2": lambda x, p: F.avg_pool3d(x, 2),
    "avg_pool3": lambda x, p: F.avg_pool3d(x, 3, 2, 1),
    "nearest": lambda x, p: F.interpolate(x, scale_factor=2),
    "nearest down": lambda x, p: F.interpolate(x, size=[n // 2 for n in x.shape[2:]]),
    "trilinear": lambda x, p: F.interpolate(x, scale_factor=2, mode="trilinear"),
    "trilinear corners": lambda x, p: F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=True),
    "trilinear by 3, 2, 1": lambda x, p: F.interpolate(x, scale_factor=(3, 2, 1), mode="trilinear"),
    "instance": lambda x, p: F.instance_norm(x, weight=p(CHANNELS), bias=p(CHANNELS)),
    "instance bare": lambda x, p: F.instance_norm(x),
    "group": lambda x, p: F.group_norm(x, 2, p(CHANNELS), p(CHANNELS)),
    "group bare": lambda x, p: F.group_norm(x, 1),
    "batch": lambda x, p: F.batch_norm(x, None, None, p(CHANNELS), p(CHANNELS), training=True),
    "batch eval": lambda x, p: F.batch_norm(
        x, torch.zeros(4).double(), torch.ones(4).double(), p(CHANNELS), p(CHANNELS)
    ),
    "squeeze and excite": lambda x, p: (
        x * F.linear(F.adaptive_avg_pool3d(x, 1).flatten(1), p(4, 4)).sigmoid().view(-1, 4, 1, 1, 1)
    ),
    "mean over space": lambda x, p: x * x.mean((2, 3, 4), keepdim=True),
    "mean over one": lambda x, p: x.mean(2),
    "sum of all": lambda x, p: x.square().sum() * x,
    "mean of all, axis": lambda x, p: torch.mean(x, axis=(0, 2)),
    "flattened": lambda x, p: (x.flatten(2) * x.reshape(2, 4, -1).softmax(1)).sum(2),
    "chunks": lambda x, p: torch.cat([part * n for n, part in enumerate(x.chunk(2, 1))], 1),
    "channels last": lambda x, p: (x.permute(0, 2, 3, 4, 1) * p(4)).movedim(-1, 1),
    "transposed planes": lambda x, p: x.transpose(2, 3).transpose(3, 2) + x.unsqueeze(1).squeeze(1),
    "indexed": lambda x, p: x[:, 1:3] * x[:, 0, None] + x[..., :].select(1, 3).unsqueeze(1),
    "prelu": lambda x, p: F.prelu(x, p(4)),
    "in place": lambda x, p: F.leaky_relu_((x * 1).add_(x, alpha=2).mul_(p(1, 4, 1, 1, 1))),
    "where": lambda x, p: torch.where(x > 0, x, p(1).expand_as(x) * torch.zeros_like(x)) + x.max(1, keepdim=True)[0],
    "stack": lambda x, p: torch.stack([x, x.relu()], 1).sum(1),
    "gather": lambda x, p: x.gather(1, (x[:, :1] > 0).long() * 2),
    "odd levels": lambda x, p: F.interpolate(F.conv3d(x, p(4, 4, 3, 3, 3), stride=2, padding=1), scale_factor=2) + x,
    "expand": lambda x, p: x[:, :1].expand(-1, 3, -1, -1, -1) * 2 + x[:, :1].repeat(1, 3, 1, 1, 1),
    "pad": lambda x, p: F.pad(x, (1, 1, 1, 1, 1, 1)),
    "pad uneven, with a number": lambda x, p: F.pad(x, (0, 1, 2, 0, 0, 3), value=1.5),
    "pad the other dimensions": lambda x, p: F.pad(x, (1, 0)),
    "pad, then stride 2": lambda x, p: F.conv3d(F.pad(x, (1, 1) * 3), p(4, 4, 3, 3, 3), stride=2),
    "pad behind, then stride 2": lambda x, p: F.conv3d(F.pad(x, (0, 1) * 3), p(4, 4, 3, 3, 3), stride=2) * 2,
    "pad, join and crop": lambda x, p: torch.cat([F.pad(F.pad(x, (2, 2) * 3), (-2, -2) * 3), x], 1),
    "crop": lambda x, p: F.pad(x, (0, 0, -1, 0, -1, -2)),
    "crop a rank away": lambda x, p: F.pad(x, (0, 0, 0, 0, -5, 1)),
    "pad channels": lambda x, p: F.pad(x, (0, 0, 0, 0, 0, 0, 1, 2)) * 2,
    "pad with the end": lambda x, p: F.pad(x, (2, 1, 1, 5, 4, 3), "replicate"),
    "pad with the mirror": lambda x, p: F.pad(x, (1, 2, 2, 1, 3, 2), "reflect"),
    "pad with more than a slab's mirror": lambda x, p: F.pad(x, (0, 0, 1, 1, 5, 4), "reflect"),
    "reflecting convolution": lambda x, p: reflecting(x, p(2, CHANNELS, 3, 3, 3)),
    "pad labels": lambda x, p: x * F.pad(F.pad((x > 0).long(), (0, 0, 1, 1, 1, 1), value=1), (0, 0, -1, -1, -1, -1)),
}
CONVOLUTIONS = {
    **{name: function for name, function in FUNCTIONS.items() if name.startswith("conv")},
    "conv5": conv(5, padding=2),
    "conv7": conv(7, padding=3),
    "conv5 dilation 2": conv(5, padding=4, dilation=2),
    "conv3 dilation 3": conv(3, padding=3, dilation=3),
    "conv5 stride 2": conv(5, padding=2, stride=2),
    "conv (3, 1, 3) stride (1, 2, 1)": conv((3, 1, 3), padding=(1, 0, 1), stride=(1, 2, 1)),
    "conv (4, 2, 3), two groups": conv((4, 2, 3), padding=(2, 1, 1), stride=(2, 1, 1), groups=2),
}
"""On thick, uneven slabs, whose interior is computed first."""
MESHES = {"3": ((3,), {"x": 2}), "2x2": ((2, 2), {"x": 2, "y": 3})}
SHAPE = (2, CHANNELS, 12, 8, 6)
THICK = {"3": (2, CHANNELS, 23, 6, 4), "2x2": (1, CHANNELS, 13, 15, 4)}


def evaluate(function: Function, x: Tensor, spatial: SpatialParallel | None) -> dict[str, Any]:
    torch.manual_seed(5)
    parameters: list[Tensor] = []

    def parameter(*shape: int) -> Tensor:
        generator = torch.Generator().manual_seed(len(parameters))
        parameters.append(torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_())
        return parameters[-1]

    out = function(x, parameter)
    loss = (out * (out.detach() * 0.7).sin()).sum()
    if spatial is None:
        loss.backward()
    else:
        spatial.backward(loss)
        spatial.sum_gradients(parameters)
    return {"out": out.detach(), "loss": float(loss.detach()), "parameters": [p.grad for p in parameters]}


def data(shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def on_slabs(rank: int) -> dict[tuple[str, str, bool], Any]:
    found: dict[tuple[str, str, bool], Any] = {}
    for mesh_name, (sizes, dims) in MESHES.items():
        count = torch.tensor(sizes).prod().item()
        ranks = torch.arange(count).view(sizes)
        mesh = _mesh(ranks, tuple(dims))
        if rank >= count:
            continue
        for name, function in FUNCTIONS.items():
            for overlapped in (False, True) if name.startswith("conv") else (False,):
                spatial = SpatialParallel(mesh, dims, overlapped=overlapped)
                with spatial:
                    spatial.begin()
                    x = spatial.shard(data()).requires_grad_()
                    result = evaluate(function, x, spatial)
                with torch.no_grad():
                    out = spatial.unshard(result["out"]) if layout_of(result["out"]) else result["out"]
                    grad = spatial.unshard(spatial.slab(x.grad, spatial.layout(SHAPE)))
                found[name, mesh_name, overlapped] = {**result, "out": out.clone(), "input": grad}
        for name, function in CONVOLUTIONS.items():
            found[f"thick {name}", mesh_name, True] = on_thick_slabs(function, mesh, dims, THICK[mesh_name])
        for name, loss in loss_functions().items():
            spatial = SpatialParallel(mesh, dims)
            logits, labels = loss_data()
            with spatial:
                x = spatial.shard(logits).requires_grad_()
                value = loss(x, spatial.shard(labels, dims={key: dim - 1 for key, dim in dims.items()}))
                spatial.backward(value)
            with torch.no_grad():
                grad = spatial.unshard(spatial.slab(x.grad, spatial.layout(SHAPE)))
            found[f"loss {name}", mesh_name, False] = {"loss": float(value.detach()), "input": grad}
    return found


def on_thick_slabs(function: Function, mesh: Any, dims: dict[str, int], shape: tuple[int, ...]) -> dict[str, Any]:
    """Overlapped; and whether the halo met its ends alone, in each of forward and backward."""
    alone: list[bool] = []

    def noted(*args: Any, **kwargs: Any) -> Any:
        ends = ends_of(*args, **kwargs)
        alone.append(ends is not None)
        return ends

    spatial = SpatialParallel(mesh, dims, overlapped=True)
    with spatial, mock.patch.object(convolution, "ends_of", noted):
        spatial.begin()
        x = spatial.shard(data(shape)).requires_grad_()
        result = evaluate(function, x, spatial)
    with torch.no_grad():
        out = spatial.unshard(result["out"])
        grad = spatial.unshard(spatial.slab(x.grad, spatial.layout(shape)))
    return {**result, "out": out.clone(), "input": grad, "alone": alone}


def _mesh(ranks: Tensor, names: tuple[str, ...]) -> Any:
    from torch.distributed.device_mesh import DeviceMesh

    return DeviceMesh("cpu", ranks, mesh_dim_names=names)


def loss_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn((2, 3, *SHAPE[2:]), generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 3, (2, *SHAPE[2:]), generator=generator)


@pytest.fixture(scope="module")
def found() -> list[dict[tuple[str, str, bool], Any]]:
    return run_ranks(on_slabs, 4, timeout=180)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_equals_the_whole(name: str, found: list[dict[tuple[str, str, bool], Any]]) -> None:
    x = data().requires_grad_()
    expected = evaluate(FUNCTIONS[name], x, None)
    seen = 0
    for rank in found:
        for (which, _, _), result in rank.items():
            if which != name:
                continue
            seen += 1
            tight = {"rtol": 1e-12, "atol": 1e-12}
            torch.testing.assert_close(result["out"], expected["out"], **tight)
            torch.testing.assert_close(result["input"], x.grad, **tight)
            torch.testing.assert_close(result["parameters"], expected["parameters"], rtol=1e-11, atol=1e-11)
            assert result["loss"] == pytest.approx(expected["loss"], rel=1e-13)
    assert seen >= 7, "on three and on four ranks"


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_halo_adds_to_the_ends(name: str, mesh: str, found: list[dict[tuple[str, str, bool], Any]]) -> None:
    """Of thick slabs, 8, 8 and 7 planes: each tap of the kernel meets the halo, or my own planes, once."""
    x = data(THICK[mesh]).requires_grad_()
    expected = evaluate(CONVOLUTIONS[name], x, None)
    ranks = [rank[f"thick {name}", mesh, True] for rank in found if (f"thick {name}", mesh, True) in rank]
    assert len(ranks) == (3 if mesh == "3" else 4)
    for result in ranks:
        tight = {"rtol": 1e-12, "atol": 1e-12}
        torch.testing.assert_close(result["out"], expected["out"], **tight)
        torch.testing.assert_close(result["input"], x.grad, **tight)
        torch.testing.assert_close(result["parameters"], expected["parameters"], rtol=1e-11, atol=1e-11)
    if name in ("conv3", "conv5", "conv7", "conv3 stride 2", "conv3 dilation 3", "conv3 groups"):
        assert all(result["alone"] == [True, True] for result in ranks), "forward and backward"


@pytest.mark.parametrize("name", loss_functions())
def test_losses(name: str, found: list[dict[tuple[str, str, bool], Any]]) -> None:
    logits, labels = loss_data()
    logits.requires_grad_()
    value = loss_functions()[name](logits, labels)
    value.backward()
    for rank in found:
        for (which, _, _), result in rank.items():
            if which == f"loss {name}":
                single = name == "dice-focal"  # MONAI's focal loss computes in float32
                assert result["loss"] == pytest.approx(float(value.detach()), rel=1e-7 if single else 1e-14)
                rtol, atol = (1e-5, 1e-9) if single else (1e-12, 1e-15)
                torch.testing.assert_close(result["input"], logits.grad, rtol=rtol, atol=atol)


class Keeps(nn.Module):
    """Drops elements and whole channels."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.dropout(x, 0.5), F.dropout3d(x, 0.5)], 1)


def dropped(rank: int) -> list[Any]:
    mesh = init_device_mesh("cpu", (3,), mesh_dim_names=("x",))
    spatial = SpatialParallel(mesh, {"x": 2}, seed=3)
    results = []
    for _ in range(2):
        with spatial:
            spatial.begin()
            out = Keeps()(spatial.shard(torch.ones(SHAPE, dtype=torch.float64)))
            replica = F.dropout(torch.ones(50), 0.5)
        results.append((spatial.unshard(out), replica))
    return results


def test_dropout() -> None:
    """Each slab has a mask of its own, a channel is dropped on all ranks or none, a replica's mask is the same."""
    ranks = run_ranks(dropped, 3)
    (first, replica), (again, _) = ranks[0]
    for others in ranks[1:]:
        assert torch.equal(others[0][0], first)
        assert torch.equal(others[0][1], replica)
    assert torch.equal(first, again), "the same seed, the same masks"
    elements, channels = first[:, :CHANNELS], first[:, CHANNELS:]
    slabs = elements.split(4, 2)
    assert not torch.equal(slabs[0], slabs[1])
    assert 0.4 < float((elements > 0).double().mean()) < 0.6
    assert set(torch.unique(channels.flatten(2).mean(2)).tolist()) <= {0.0, 2.0}
    assert len(tree_leaves(ranks)) > 0

"""Slabs compose with DistributedDataParallel, FSDP2, checkpoints of activations, and all three dimensions at once."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from lampseg.networks import UNet
from lampseg.parallel.spatial import SpatialParallel, checkpointed
from tests.ranks import run_ranks

pytestmark = pytest.mark.timeout(150)

SHAPE = (1, 1, 16, 16, 16)


def network() -> nn.Module:
    torch.manual_seed(7)
    return UNet(out_channels=3, filters=4, depth=2, norm="instance", stem_stride=1).double()


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(SHAPE, generator=generator).double(), torch.randint(0, 3, (1, 16, 16, 16), generator=generator)


def whole() -> dict[str, Tensor]:
    net, (x, y) = network(), data()
    F.cross_entropy(net(x), y).backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def same(found: dict[str, Tensor]) -> None:
    expected = whole()
    assert found.keys() == expected.keys()
    largest = max(float(grad.abs().max()) for grad in expected.values())
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=0, atol=1e-12 * largest)


def gradients(net: nn.Module) -> dict[str, Tensor]:
    found = {}
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            grad = parameter.grad
            found[name.removeprefix("module.")] = grad.full_tensor() if isinstance(grad, DTensor) else grad
    return found


def slabs_with(rank: int, way: str) -> dict[str, Tensor]:
    sizes = {"dimensions": (2, 2, 2)}.get(way, (2,))
    dims: dict[str, int] = dict(zip("xyz", range(2, 2 + len(sizes))))
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=tuple(dims))
    spatial = SpatialParallel(mesh, dims, stride=4)
    net, (x, y) = network(), data()
    if way == "ddp":
        net = DistributedDataParallel(net)
    elif way == "fsdp":
        for block in net.encoders:  # type: ignore[union-attr]
            fully_shard(block, mesh=mesh)
        fully_shard(net, mesh=mesh)
    elif way == "checkpoint":
        for module in (*net.encoders, *net.decoders):  # type: ignore[union-attr, misc]
            checkpointed(module, spatial)
    with spatial:
        spatial.begin()
        loss = F.cross_entropy(
            net(spatial.shard(x)), spatial.shard(y, dims={name: dim - 1 for name, dim in dims.items()})
        )
        if way in ("ddp", "fsdp"):
            loss.backward()  # both take the mean over the ranks
        else:
            spatial.backward(loss)
    if way not in ("ddp", "fsdp"):
        spatial.sum_gradients(net.parameters())
    dist.barrier()
    return gradients(net)


@pytest.mark.parametrize("way", ["ddp", "fsdp", "checkpoint", "dimensions"])
def test_gradients_are_those_of_one_device(way: str) -> None:
    for found in run_ranks(slabs_with, 8 if way == "dimensions" else 2, way):
        same(found)


class Dropping(nn.Module):
    """Draws numbers: its second run must draw the same."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, 2, 3, padding=1, dtype=torch.float64)
        self.norm = nn.BatchNorm3d(2, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.norm(self.convolution(x)), 0.5).relu()


def dropping(rank: int) -> list[Any]:
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("x",))
    found = []
    for again in (False, True):
        torch.manual_seed(1)
        module = Dropping()
        spatial = SpatialParallel(mesh, {"x": 2}, seed=5)
        if again:
            checkpointed(module, spatial)
        with spatial:
            spatial.begin()
            loss = module(spatial.shard(data()[0])).square().mean()
            spatial.backward(loss)
        spatial.sum_gradients(module.parameters())
        found.append((float(loss.detach()), gradients(module) | dict(module.named_buffers())))
    return found


def test_a_second_run_draws_the_same_numbers() -> None:
    for (loss, expected), (again, found) in run_ranks(dropping, 2):
        assert again == loss
        torch.testing.assert_close(found, expected, rtol=0, atol=0)

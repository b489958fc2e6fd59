"""What is compared: one training step of a network, on one process, in slabs, and in a pipeline."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import DynUNet, SegResNet
from torch import Tensor, nn

from lampseg.networks import UNet
from lampseg.parallel.fake_state import fake_state
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.spatial.forecast import slab_cost
from lampseg.parallel.world import World
from lampseg.partition.costed import CostedNetwork
from lampseg.partition.placement import place
from lampseg.partition.plan import Plan

CLASSES = 4
STRIDE = (8, 8, 8)
COUNTED = ("halo_bytes", "halo_messages", "collective_bytes", "collectives")
NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "U-Net": lambda f: UNet(out_channels=CLASSES, filters=f, depth=3, norm="instance", stem_stride=1),
    "SegResNet": lambda f: SegResNet(3, f, 1, CLASSES, blocks_down=(1, 1, 1, 1), blocks_up=(1, 1, 1)),
    "DynUNet": lambda f: DynUNet(
        3, 1, CLASSES, [3] * 4, [1, 2, 2, 2], [2, 2, 2], filters=[f, 2 * f, 4 * f, 8 * f], res_block=True
    ),
}


@dataclass(frozen=True)
class Load:
    """What every way computes in one step."""

    name: str
    filters: int
    size: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 1, *self.size)

    def network(self) -> nn.Module:
        torch.manual_seed(7)
        return NETWORKS[self.name](self.filters)

    def image(self) -> Tensor:
        return torch.rand(self.shape, generator=torch.Generator().manual_seed(1))

    def labels(self) -> Tensor:
        return (torch.arange(torch.Size(self.size).numel()) % CLASSES).view(1, *self.size)


def loss_of(output: Any, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def alone(load: Load) -> Callable[[], dict[str, float]]:
    """One process."""
    network, x, y = load.network(), load.image(), load.labels()

    def step() -> dict[str, float]:
        network.zero_grad(set_to_none=True)
        loss_of(network(x), y).backward()
        return {}

    return step


def ours(load: Load, plan: Plan, *, world: World) -> Callable[[], dict[str, float]]:
    """By a plan: slabs or stages."""
    model = ParallelModel(load.network(), plan, world=world, stride=STRIDE)
    runner = model.runner
    region = runner.region(load.shape)
    x, y = load.image()[(..., *region)].contiguous(), load.labels()[(..., *region)].contiguous()

    def step() -> dict[str, float]:
        model.network.zero_grad(set_to_none=True)
        before = traffic(runner)
        runner.step([load.shape], load=lambda m: x, loss=lambda m, out: loss_of(out, runner.placed(y, load.shape)))
        return {key: now - then for key, now, then in zip(COUNTED, traffic(runner), before, strict=True)}

    return step


def traffic(runner: Any) -> tuple[int, ...]:
    if runner.spatial is None:
        return (0,) * len(COUNTED)
    return tuple(getattr(runner.spatial.traffic, key) for key in COUNTED)


def foreseen(model: CostedNetwork, grid: tuple[int, ...]) -> list[list[int]]:
    """What each rank sends in a step by the rehearsal."""

    def loss(output: Any, shape: tuple[int, ...], placed: Callable[[Tensor], Tensor]) -> Tensor:
        return loss_of(output, placed(torch.empty((shape[0], *shape[2:]), dtype=torch.int64)))

    found = []
    with fake_state(model.network) as fake:
        fake.hold(place(model.graph, ()), 0, gradients=False)
        for where in itertools.product(*(range(count) for count in grid)):
            cost = slab_cost(model, fake, grid, where, stride=STRIDE, loss=loss)
            found.append([cost.halo_bytes, cost.halo_messages, cost.collective_bytes, cost.collectives])
    return found

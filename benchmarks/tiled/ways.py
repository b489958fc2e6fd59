"""What is compared on one device: a training step as it is, with recompute in stages, and in tiles."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.plan_accuracy.cases import Case
from benchmarks.plan_accuracy.memory import LOSS, Steps
from benchmarks.shared.networks import CLASSES, SMALL
from lampseg.hardware.device import hardware_for
from lampseg.parallel.rehearsal import rehearse
from lampseg.parallel.tiled.forecast import tile_choices, tile_plan
from lampseg.parallel.tiled.passes import TiledPasses
from lampseg.parallel.world import World
from lampseg.partition.costed import CostedNetwork, cost_network
from lampseg.partition.forecast import plan_of
from lampseg.partition.plan import Plan
from lampseg.partition.planner import cut_for
from lampseg.recording.live import LiveBytes
from lampseg.training.planned_loss import planned_loss

WAYS = ("plain", "recompute", "tiles")
NETWORKS = (
    "unet", "seunet", "monai-unet", "basicunet", "dynunet", "dynunet-deep", "segresnet", "attentionunet",
    "plainconvunet", "residualencoderunet",
)  # fmt: skip


@dataclass(frozen=True)
class Load:
    """One network and one input."""

    network: str
    size: tuple[int, ...]
    tile: int
    """Planes of a tile of the input."""

    @property
    def case(self) -> Case:
        return Case(self.network, (1, 1, *self.size), devices=1, micro_batches=1)


@dataclass(frozen=True)
class Way:
    """A plan, and the peak bytes of tensors that it predicts."""

    plan: Plan
    predicted: int


def ways_of(load: Load) -> dict[str, Way]:
    """The plans of a load; nothing is run."""
    loss = planned_loss(LOSS, classes=CLASSES)
    network = SMALL[load.network].build(load.size, meta=True)
    hardware = hardware_for(kind="cpu", processes=1)
    model = cost_network(network, shape=load.case.shape, hardware=hardware, loss=loss, name=load.network)
    plain = _staged(model, stages=1)
    again = min((_staged(model, stages=stages) for stages in (2, 3, 4)), key=lambda way: way.predicted)
    tiled = tile_plan(model, tile_choices(load.tile, micro_batches=1), loss=loss)
    return {"plain": plain, "recompute": again, "tiles": Way(tiled, tiled.devices[0].tensor_bytes)}


def _staged(model: CostedNetwork, *, stages: int) -> Way:
    """One stage that keeps everything, or several, one after the other, that recompute."""
    choices = cut_for(
        model,
        devices=1,
        stages=stages,
        schedule="1f1b" if stages == 1 else "interleaved",
        micro_batches=1,
        recompute=("none",) if stages == 1 else ("all",) * stages,
    )
    assert choices is not None
    plan = plan_of(model, choices)
    (load,) = rehearse(model, plan, planned_loss(LOSS, classes=CLASSES))
    return Way(plan, load.tensor_bytes)


def step_of(load: Load, way: Way, *, world: World) -> Steps:
    """A network that trains by a plan."""
    return Steps(load.case, way.plan, world=world)


def inference(load: Load, *, tiled: bool) -> int:
    """The most bytes of tensors that are alive in a prediction, beside the parameters and buffers."""
    network = SMALL[load.network].build(load.size).eval()
    device = torch.device("cpu")
    forward: Callable[[Tensor], Any] = network
    if tiled:
        forward = TiledPasses(network, tile=load.tile, device=device, precision="float32").forward
    live = LiveBytes(fake=False)
    x = [torch.zeros(load.case.shape)]
    live.add(x[0])
    with torch.no_grad(), live:
        forward(x.pop())
    return live.peak

"""The forecast for tiles: what one device holds and does, from a rehearsal of the tiled run on fake tensors."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lampseg.parallel.fake_state import fake_state
from lampseg.parallel.tiled.passes import TiledPasses
from lampseg.parallel.whole_network import kernel_seconds, whole_load, whole_stage
from lampseg.partition.costed import CostedNetwork, MicroBatchLoss
from lampseg.partition.placement import place
from lampseg.partition.plan import Choices, Plan
from lampseg.recording.backward import EmptyLoss
from lampseg.recording.tally import Tally, tally

THICKEST = 4
"""Tiles of the input at least: fewer save little."""
THINNEST = 2
"""Planes of a tile of the input that are tried: thinner ones read more planes around them than of their own."""


def thicknesses(planes: int) -> Iterator[int]:
    """Planes of a tile that are worth trying, from thick to thin."""
    tile = -(-planes // THICKEST)
    while tile > THINNEST:
        yield tile
        tile = -(-tile // 2)
    yield min(planes, THINNEST)


def inference_tile(planes: int) -> int:
    """Planes of a tile in predictions: nothing runs again there, and thinner ones save little."""
    return -(-planes // (2 * THICKEST))


def tile_choices(tile: int, *, micro_batches: int) -> Choices:
    """Choices that run the network in tiles of so many planes."""
    return Choices(
        devices=1,
        replicas=1,
        micro_batches=micro_batches,
        schedule="1f1b",
        cuts=(),
        recompute=("none",),
        tile=tile,
    )


def tile_plan(
    model: CostedNetwork,
    choices: Choices,
    *,
    loss: MicroBatchLoss | None = None,
    memory: Sequence[float] | None = None,
) -> Plan:
    """The Plan of given choices with tiles.

    Args:
        model: the network costed for one micro-batch.
        memory: bytes of the device.

    Raises:
        UserError: the choices contradict each other.
    """
    choices.check()
    assert choices.tile
    counted = _rehearsed(model, choices, loss)
    forward, backward = kernel_seconds(model, counted.forward), kernel_seconds(model, counted.backward)
    stage = whole_stage(model, counted, forward_seconds=forward, backward_seconds=backward)
    has = None if memory is None else memory[0]
    load = whole_load(model, choices, counted, stage, index=0, memory=has, seconds=forward + backward)
    return Plan(
        network=model.name,
        input_shape=tuple(model.graph.input.shape),
        precision=model.precision,
        operations=len(model.graph.operations),
        digest=model.graph.digest,
        hardware=model.hardware.source,
        choices=choices,
        stages=(stage,),
        devices=(load,),
        links=(),
        step_seconds=load.busy_seconds + model.hardware.optimizer_seconds(stage.parameter_bytes),
        bubble=0.0,
    )


def _rehearsed(model: CostedNetwork, choices: Choices, loss: MicroBatchLoss | None) -> Tally:
    """Runs one micro-batch forward and backward on fake tensors, under a mode that counts."""
    value = model.graph.input
    passes = TiledPasses(model.network, tile=choices.tile, device=value.device, precision=model.precision)

    def make() -> list[Tensor]:
        return [torch.empty(value.shape, dtype=value.dtype, device=value.device)]

    def run(inputs: list[Tensor]) -> Tensor:
        output = passes.forward(inputs.pop())
        return EmptyLoss.of(output) if loss is None else loss(output, value.shape)

    with fake_state(model.network) as fake, torch.enable_grad():
        fake.hold(place(model.graph, ()), 0, gradients=choices.share > 1)
        passes.know(model.graph)
        return tally(make, run, mode=fake.mode)

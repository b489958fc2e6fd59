"""The forecast for tiles: what one device holds and does, from a rehearsal of the tiled run on fake tensors."""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from lampseg.hardware.device import Precision
from lampseg.parallel.fake_state import fake_state
from lampseg.parallel.tiled.passes import TiledPasses
from lampseg.partition.costed import CostedNetwork, MicroBatchLoss
from lampseg.partition.placement import place
from lampseg.partition.plan import Choices, DeviceLoad, Plan, Stage
from lampseg.recording.backward import EmptyLoss
from lampseg.recording.kernel import Kernel
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
    stage = _stage(model, counted)
    load = _load(model, choices, counted, stage, memory)
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


def _stage(model: CostedNetwork, counted: Tally) -> Stage:
    graph = model.graph
    first = next((op for op in graph.operations if not op.plain), graph.operations[0])
    parameters = dict(model.network.named_parameters())
    trained = sum(_nbytes(p) for p in parameters.values() if p.requires_grad)
    return Stage(
        index=0,
        device=0,
        first=0,
        last=len(graph.operations),
        begins=f"{first.name} @ {first.module or 'network'}",
        modules=tuple(dict.fromkeys(op.module for op in graph.operations if op.module)),
        recompute="none",
        parameters=sum(p.numel() for p in parameters.values()),
        parameter_bytes=sum(_nbytes(t) for t in (*parameters.values(), *model.network.buffers())),
        gradient_bytes=trained,
        optimizer_bytes=int(trained * model.optimizer),
        activation_bytes=counted.saved_bytes,
        in_flight=1,
        receive_bytes=0,
        send_bytes=0,
        extra_bytes=counted.extra_bytes,
        flops=sum(kernel.flops for kernel in (*counted.forward, *counted.backward)),
        forward_seconds=_seconds(model, counted.forward),
        backward_seconds=_seconds(model, counted.backward),
    )


def _load(
    model: CostedNetwork, choices: Choices, counted: Tally, stage: Stage, memory: Sequence[float] | None
) -> DeviceLoad:
    precision = cast(Precision, model.precision)
    kernels = (*counted.forward, *counted.backward)
    library = max((model.hardware.workspace_bytes(kernel, precision) for kernel in kernels), default=0.0)
    library += model.hardware.reserve_bytes
    state = stage.parameter_bytes + stage.optimizer_bytes
    # Of a single micro-batch, the gradients are made during the backward, which counts them.
    before = stage.gradient_bytes if choices.share > 1 else 0
    running = state + before + counted.saved_bytes + counted.extra_bytes
    # RMSprop makes a root of the numbers it keeps: PyTorch does so for one parameter after the other, on CUDA for all.
    sizes = [_nbytes(p) for p in model.network.parameters() if p.requires_grad]
    roots = (sum(sizes) if model.graph.input.device.type == "cuda" else max(sizes)) if sizes else 0
    stepping = state + stage.gradient_bytes + roots
    kept = counted.saved_bytes if running >= stepping else 0
    tensors = max(running, stepping)
    rest = tensors - state - kept
    gradients = min(stage.gradient_bytes, rest)
    return DeviceLoad(
        index=0,
        memory_bytes=None if memory is None else memory[0],
        parameter_bytes=stage.parameter_bytes,
        gradient_bytes=gradients,
        optimizer_bytes=stage.optimizer_bytes,
        activation_bytes=kept,
        boundary_bytes=0,
        temporary_bytes=rest - gradients,
        library_bytes=int(library),
        peak_bytes=tensors + int(library),
        busy_seconds=choices.share * (stage.forward_seconds + stage.backward_seconds),
    )


def _seconds(model: CostedNetwork, kernels: Sequence[Kernel]) -> float:
    precision = cast(Precision, model.precision)
    return sum(model.hardware.seconds(kernel, precision=precision) for kernel in kernels)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

"""The forecast of a device that runs the whole network, tile by tile or on a slab, from the tally of a micro-batch."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor

from lampseg.hardware.device import Precision
from lampseg.partition.costed import CostedNetwork
from lampseg.partition.plan import Choices, DeviceLoad, Stage
from lampseg.recording.kernel import Kernel
from lampseg.recording.tally import Tally


def kernel_seconds(model: CostedNetwork, kernels: Sequence[Kernel]) -> float:
    """Of all of them, one after the other."""
    precision = cast(Precision, model.precision)
    return sum(model.hardware.seconds(kernel, precision=precision) for kernel in kernels)


def whole_stage(model: CostedNetwork, counted: Tally, *, forward_seconds: float, backward_seconds: float) -> Stage:
    """The whole network as the only stage; it sends and receives nothing."""
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
        forward_seconds=forward_seconds,
        backward_seconds=backward_seconds,
    )


def whole_load(
    model: CostedNetwork,
    choices: Choices,
    counted: Tally,
    stage: Stage,
    *,
    index: int,
    memory: float | None,
    seconds: float,
) -> DeviceLoad:
    """What the device holds and does in a step.

    Args:
        index: of the device.
        memory: bytes that it has.
        seconds: of a micro-batch's forward and backward there.
    """
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
    kept = counted.saved_bytes if running > stepping else 0
    tensors = max(running, stepping)
    rest = tensors - state - kept
    gradients = min(stage.gradient_bytes, rest)
    return DeviceLoad(
        index=index,
        memory_bytes=memory,
        parameter_bytes=stage.parameter_bytes,
        gradient_bytes=gradients,
        optimizer_bytes=stage.optimizer_bytes,
        activation_bytes=kept,
        boundary_bytes=0,
        temporary_bytes=rest - gradients,
        library_bytes=int(library),
        peak_bytes=tensors + int(library),
        busy_seconds=choices.share * seconds,
    )


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

"""The forecast for slabs: what each rank of a volume holds and does, from a rehearsal of its slab on fake tensors."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from lampseg.hardware.device import Hardware, Precision
from lampseg.parallel.fake_state import FakeState, fake_state
from lampseg.parallel.spatial.checkpointed import modules_of, recomputing
from lampseg.parallel.spatial.cutting import AXES
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.partition.costed import CostedNetwork, MicroBatchLoss
from lampseg.partition.placement import place
from lampseg.partition.plan import Choices, DeviceLoad, Plan, Stage
from lampseg.recording.backward import EmptyLoss
from lampseg.recording.kernel import Kernel
from lampseg.recording.tally import Tally, tally


@dataclass(frozen=True)
class SlabCost:
    """One micro-batch on one rank's slab."""

    tally: Tally
    forward_seconds: float
    backward_seconds: float
    halo_bytes: int
    """Sent in forward and backward."""
    halo_messages: int
    collective_bytes: int
    collectives: int


def slab_plan(
    model: CostedNetwork,
    choices: Choices,
    *,
    stride: Sequence[int],
    loss: MicroBatchLoss | None = None,
    memory: Sequence[float] | None = None,
    roughly: bool = False,
) -> Plan:
    """The Plan of given choices with slabs.

    Args:
        model: the network costed for one micro-batch of whole volumes.
        stride: the network's total down-sampling along each spatial dimension.
        memory: bytes of each process.
        roughly: take all slabs to be as the thickest, which is quick: each kind of slab takes a second or two.

    Raises:
        UserError: the choices contradict each other, name what is no module, or a volume has fewer planes than ranks.
        NotExactError: the network does what is not known to be exact on slabs.
    """
    choices.check()
    modules_of(model.network, choices.recomputed)
    shape = model.graph.input.shape
    slabs = choices.slabs[: len(shape) - 2]
    places = list(itertools.product(*(range(count) for count in slabs)))
    costs: dict[Any, SlabCost] = {}
    kinds = [_kind(slabs, where, shape=shape, stride=stride) for where in places]
    if roughly:  # one that has most
        kinds = [max(kinds)] * len(kinds)
    with fake_state(model.network) as fake:
        # The last of a kind stands for it: a strided convolution reads planes before its slab, but none behind.
        for kind, where in reversed(list(zip(kinds, places, strict=True))):
            if kind not in costs and kind == _kind(slabs, where, shape=shape, stride=stride):
                hold_anew(model, fake, choices)
                costs[kind] = slab_cost(
                    model, fake, slabs, where, stride=stride, loss=loss, recomputed=choices.recomputed
                )
    each = [costs[kind] for kind in kinds]
    stage = _stage(model, each)
    loads = tuple(_load(model, choices, n, cost, stage, memory) for n, cost in enumerate(each))
    seconds = choices.share * (stage.forward_seconds + stage.backward_seconds)
    seconds += model.hardware.optimizer_seconds(stage.parameter_bytes)
    seconds += model.hardware.all_reduce_seconds(stage.gradient_bytes, choices.processes)
    return Plan(
        network=model.name,
        input_shape=tuple(shape),
        precision=model.precision,
        operations=len(model.graph.operations),
        digest=model.graph.digest,
        hardware=model.hardware.source,
        choices=choices,
        stages=(stage,),
        devices=loads,
        links=(),
        step_seconds=seconds,
        bubble=0.0,
    )


@dataclass(frozen=True)
class Rehearsal:
    """One rank's forward and backward of one micro-batch, on fake tensors."""

    spatial: SpatialParallel
    make: Callable[[], list[Tensor]]
    """My slab of the input, as the only entry of a list."""
    run: Callable[[list[Tensor]], Tensor]
    """Takes it out of the list, and gives my share of the loss."""


def rehearsal(
    model: CostedNetwork,
    slabs: Sequence[int],
    where: Sequence[int],
    *,
    stride: Sequence[int],
    loss: MicroBatchLoss | None,
    recomputed: Sequence[str] = (),
) -> Rehearsal:
    """What one rank would do; to be run in a fake mode, while the network holds fake state."""
    shape, dtype = model.graph.input.shape, model.graph.input.dtype
    cut = [n for n, count in enumerate(slabs) if count > 1]
    spatial = SpatialParallel.rehearsal(
        {AXES[n]: slabs[n] for n in cut},
        {AXES[n]: n + 2 for n in cut},
        place={AXES[n]: where[n] for n in cut},
        stride=stride,
    )
    spatial.begin()
    layout = spatial.layout(shape)
    local = list(shape)
    for shard in layout:
        local[shard.dim] = spatial.local(shard)
    device = model.graph.input.device

    def make() -> list[Tensor]:
        return [torch.empty(local, dtype=dtype, device=device)]

    def run(inputs: list[Tensor]) -> Tensor:
        x = spatial.slab(inputs.pop(), layout)
        with spatial:
            with (
                torch.autocast(device.type, torch.bfloat16, enabled=model.precision == "bfloat16"),
                recomputing(model.network, recomputed, spatial),
            ):
                output = model.network(x)
            del x
            if loss is None:
                with torch._C.DisableTorchFunction():
                    return EmptyLoss.of(output)
            value = loss(
                output,
                tuple(local),
                lambda t: spatial.slab(t, tuple(s.at(s.dim + t.dim() - len(shape)) for s in layout)),
            )
            return value / spatial.size

    return Rehearsal(spatial, make, run)


def hold_anew(model: CostedNetwork, fake: FakeState, choices: Choices) -> None:
    """The whole network's state before a micro-batch; of several, as before the second: gradients are there."""
    fake.hold(place(model.graph, ()), 0, gradients=choices.share > 1)


def slab_cost(
    model: CostedNetwork,
    fake: FakeState,
    slabs: Sequence[int],
    where: Sequence[int],
    *,
    stride: Sequence[int],
    loss: MicroBatchLoss | None,
    recomputed: Sequence[str] = (),
) -> SlabCost:
    """Runs one rank's slab forward and backward on fake tensors, under a mode that counts."""
    of = rehearsal(model, slabs, where, stride=stride, loss=loss, recomputed=recomputed)
    sent: list[tuple[float, int, int, int, int]] = []
    counted = tally(
        of.make, of.run, mode=fake.mode, between=lambda: sent.append(traffic_so_far(of.spatial, model.hardware))
    )
    forward, backward = sent[0], traffic_so_far(of.spatial, model.hardware)
    return SlabCost(
        counted,
        kernel_seconds(model, counted.forward) + forward[0],
        kernel_seconds(model, counted.backward) + backward[0] - forward[0],
        *backward[1:],
    )


def fullest(slabs: Sequence[int], *, shape: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """The place of a rank that has most: the last of those with the thickest slab and most neighbours."""
    places = list(itertools.product(*(range(count) for count in slabs)))
    return max(places, key=lambda where: (_kind(slabs, where, shape=shape, stride=stride), where))


def _kind(
    slabs: Sequence[int], where: Sequence[int], *, shape: Sequence[int], stride: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Ranks of one kind do nearly the same: their slabs are as thick and have as many neighbours."""
    spatial = SpatialParallel.rehearsal(
        {AXES[n]: count for n, count in enumerate(slabs) if count > 1},
        {AXES[n]: n + 2 for n, count in enumerate(slabs) if count > 1},
        place={AXES[n]: place for n, place in enumerate(where) if slabs[n] > 1},
        stride=stride,
    )
    found: list[tuple[int, int]] = []
    for shard in spatial.layout(shape):
        axis = spatial.axes[shard.axis]
        found.append((spatial.local(shard), (axis.rank > 0) + (axis.rank < axis.size - 1)))
    return tuple(found)


def traffic_so_far(spatial: SpatialParallel, hardware: Hardware) -> tuple[float, int, int, int, int]:
    """Seconds of what was sent so far; halo bytes and messages, bytes of collectives and their number."""
    seconds = 0.0
    for axis in spatial.axes:
        sent = axis.traffic
        seconds += sent.halo_messages * hardware.link.latency + sent.halo_bytes / hardware.link.bytes_per_second
        # all_reduce_seconds is linear in the bytes: the latency of each, and the bytes of all.
        seconds += (sent.collectives - 1) * hardware.all_reduce_seconds(0, axis.size) if sent.collectives else 0.0
        seconds += hardware.all_reduce_seconds(sent.collective_bytes, axis.size) if sent.collectives else 0.0
    total = spatial.traffic
    return seconds, total.halo_bytes, total.halo_messages, total.collective_bytes, total.collectives


def kernel_seconds(model: CostedNetwork, kernels: Sequence[Kernel]) -> float:
    """What kernels take, one after the other."""
    precision = cast(Precision, model.precision)
    return sum(model.hardware.seconds(kernel, precision=precision) for kernel in kernels)


def _stage(model: CostedNetwork, costs: Sequence[SlabCost]) -> Stage:
    """The whole network, at the pace of the slowest slab: the others wait for its halos."""
    graph = model.graph
    first = next((op for op in graph.operations if not op.plain), graph.operations[0])
    parameters = dict(model.network.named_parameters())
    trained = sum(_nbytes(p) for p in parameters.values() if p.requires_grad)
    slowest = max(costs, key=lambda cost: cost.forward_seconds + cost.backward_seconds)
    kernels = (*slowest.tally.forward, *slowest.tally.backward)
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
        activation_bytes=max(cost.tally.saved_bytes for cost in costs),
        in_flight=1,
        receive_bytes=slowest.halo_bytes,
        send_bytes=slowest.halo_bytes,
        extra_bytes=max(cost.tally.extra_bytes for cost in costs),
        flops=sum(kernel.flops for kernel in kernels),
        forward_seconds=slowest.forward_seconds,
        backward_seconds=slowest.backward_seconds,
    )


def _load(
    model: CostedNetwork, choices: Choices, index: int, cost: SlabCost, stage: Stage, memory: Sequence[float] | None
) -> DeviceLoad:
    precision = cast(Precision, model.precision)
    kernels = (*cost.tally.forward, *cost.tally.backward)
    library = max((model.hardware.workspace_bytes(kernel, precision) for kernel in kernels), default=0.0)
    library += model.hardware.reserve_bytes
    kept, passing = cost.tally.saved_bytes, cost.tally.extra_bytes
    state = stage.parameter_bytes + stage.optimizer_bytes
    # Of a single micro-batch, the gradients are made during the backward, which counts them.
    before = stage.gradient_bytes if choices.share > 1 else 0
    sizes = [_nbytes(p) for p in model.network.parameters() if p.requires_grad]
    roots = (sum(sizes) if model.graph.input.device.type == "cuda" else max(sizes)) if sizes else 0
    stepping = state + stage.gradient_bytes + roots
    tensors = max(state + before + kept + passing, stepping)
    if tensors == stepping:
        kept = 0
    rest = tensors - state - kept
    gradients = min(stage.gradient_bytes, rest)
    return DeviceLoad(
        index=index,
        memory_bytes=None if memory is None else min(memory[index :: choices.sharing]),
        parameter_bytes=stage.parameter_bytes,
        gradient_bytes=gradients,
        optimizer_bytes=stage.optimizer_bytes,
        activation_bytes=kept,
        boundary_bytes=0,
        temporary_bytes=rest - gradients,
        library_bytes=int(library),
        peak_bytes=tensors + int(library),
        busy_seconds=choices.share * (cost.forward_seconds + cost.backward_seconds),
    )


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

"""The forecast for slabs: what each rank of a volume holds and does, from a rehearsal of its slab on fake tensors."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lampseg.hardware.device import Hardware
from lampseg.parallel.fake_state import FakeState, fake_state
from lampseg.parallel.spatial.checkpointed import modules_of, recomputing
from lampseg.parallel.spatial.cutting import AXES
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.parallel.whole_network import kernel_seconds, whole_load, whole_stage
from lampseg.partition.costed import CostedNetwork, MicroBatchLoss
from lampseg.partition.placement import place
from lampseg.partition.plan import Choices, Plan
from lampseg.recording.backward import EmptyLoss
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


Rehearsed = dict[tuple[Any, ...], SlabCost]
"""What slabs cost, by grid, kind of slab and modules that run again; of one network, its loss and micro-batches."""


def slab_plan(
    model: CostedNetwork,
    choices: Choices,
    *,
    stride: Sequence[int],
    loss: MicroBatchLoss | None = None,
    memory: Sequence[float] | None = None,
    roughly: bool = False,
    known: Rehearsed | None = None,
) -> Plan:
    """The Plan of given choices with slabs.

    Args:
        model: the network costed for one micro-batch of whole volumes.
        stride: the network's total down-sampling along each spatial dimension.
        memory: bytes of each process.
        roughly: take all slabs to be as the thickest, which is quick: each kind of slab takes a second or two.
        known: slabs that were rehearsed before; those rehearsed now are added.

    Raises:
        UserError: the choices contradict each other, name what is no module, or a volume has fewer planes than ranks.
        NotExactError: the network does what is not known to be exact on slabs.
    """
    choices.check()
    modules_of(model.network, choices.recomputed)
    shape = model.graph.input.shape
    slabs = choices.slabs[: len(shape) - 2]
    places = list(itertools.product(*(range(count) for count in slabs)))
    kinds = [_kind(slabs, where, shape=shape, stride=stride) for where in places]
    if roughly:  # one that has most
        kinds = [max(kinds)] * len(kinds)
    known = {} if known is None else known
    keys = [(slabs, kind, choices.recomputed, choices.share > 1) for kind in kinds]
    if not all(key in known for key in keys):
        with fake_state(model.network) as fake:
            # The last of a kind stands for it: a strided convolution reads planes before its slab, but none behind.
            for key, where in reversed(list(zip(keys, places, strict=True))):
                if key not in known and key[1] == _kind(slabs, where, shape=shape, stride=stride):
                    hold_anew(model, fake, choices)
                    known[key] = slab_cost(
                        model, fake, slabs, where, stride=stride, loss=loss, recomputed=choices.recomputed
                    )
    each = [known[key] for key in keys]
    # At the pace of the slowest slab: the others wait for its halos.
    slowest = max(each, key=lambda cost: cost.forward_seconds + cost.backward_seconds)
    stage = replace(
        whole_stage(
            model,
            slowest.tally,
            forward_seconds=slowest.forward_seconds,
            backward_seconds=slowest.backward_seconds,
        ),
        activation_bytes=max(cost.tally.saved_bytes for cost in each),
        extra_bytes=max(cost.tally.extra_bytes for cost in each),
        receive_bytes=slowest.halo_bytes,
        send_bytes=slowest.halo_bytes,
    )
    loads = tuple(
        whole_load(
            model,
            choices,
            cost.tally,
            stage,
            index=n,
            memory=None if memory is None else min(memory[n :: choices.sharing]),
            seconds=cost.forward_seconds + cost.backward_seconds,
        )
        for n, cost in enumerate(each)
    )
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
        device=model.hardware.kind,
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

"""From a network, one micro-batch's shape and a way to run to a Plan: the cuts are found, everything else is given."""

from collections.abc import Sequence

from torch import nn

from lampseg.errors import UserError
from lampseg.hardware.device import Hardware
from lampseg.partition.costed import CostedNetwork, cost_network
from lampseg.partition.forecast import plan_of
from lampseg.partition.plan import Choices, Plan, Recompute
from lampseg.partition.schedule import Pace, Schedule, timetable
from lampseg.partition.several import solve_several
from lampseg.partition.solver import Cut, solve
from lampseg.units import format_bytes


def make_plan(
    network: nn.Module,
    *,
    shape: tuple[int, ...],
    devices: int = 1,
    micro_batches: int = 1,
    schedule: Schedule = "1f1b",
    recompute: Recompute = "none",
    precision: str = "float32",
    hardware: Hardware | None = None,
    memory: Sequence[float] | None = None,
    training: bool = True,
    name: str | None = None,
) -> Plan:
    """Splits `network` (in its present mode) over `devices` in the given way; only the cuts are searched.

    Args:
        shape: of one micro-batch, (N, C, *spatial).
        micro_batches: of a step.
        memory: bytes of each device; None sets no limit.
        training, precision, hardware, name: see `cost_network`.

    Raises:
        UserError: the network can't be recorded, has too few operations, or does not fit.
    """
    model = cost_network(network, shape=shape, precision=precision, hardware=hardware, training=training, name=name)
    stages = 2 * devices if schedule in ("v", "interleaved") else devices
    choices = cut_for(
        model,
        devices=devices,
        stages=stages,
        schedule=schedule,
        micro_batches=micro_batches,
        recompute=(recompute,) * stages,
        memory=memory,
    )
    if choices is not None:
        return plan_of(model, choices, memory=memory)
    enough_operations(model, stages)
    assert memory is not None
    unlimited = cut_for(
        model,
        devices=devices,
        stages=stages,
        schedule=schedule,
        micro_batches=micro_batches,
        recompute=(recompute,) * stages,
    )
    assert unlimited is not None
    needs = ", ".join(format_bytes(load.peak_bytes) for load in plan_of(model, unlimited).devices)
    raise UserError(
        f"{model.name} on {tuple(shape)} does not fit: balanced over {devices} device(s) it needs {needs}, they have "
        f"{', '.join(format_bytes(available) for available in memory)}. Use more devices, `parallel.recompute: all`, "
        "`precision: bfloat16`, more micro-batches (a smaller batch each) or a smaller patch"
    )


def enough_operations(model: CostedNetwork, stages: int) -> None:
    """Raises UserError if the network can't be cut into so many stages."""
    if stages > model.costs.count:
        raise UserError(
            f"{stages} stages: {model.name} can be cut into at most {model.costs.count} stages for an "
            f"input of shape {tuple(model.graph.input.shape)}: ask for fewer devices"
        )


def cut_for(
    model: CostedNetwork,
    *,
    devices: int,
    stages: int,
    schedule: Schedule,
    micro_batches: int,
    replicas: int = 1,
    recompute: Sequence[Recompute] | None = None,
    limit: int | None = None,
    memory: Sequence[float] | None = None,
) -> Choices | None:
    """The best cuts for everything else given; None if there are too few operations or it does not fit.

    Args:
        micro_batches: of a step, over all replicas.
        recompute: of each stage; None: where the memory needs it.
        memory: bytes of each device of a replica.
    """
    share = -(-micro_batches // replicas)
    even = timetable(schedule, devices=devices, micro_batches=share, pace=Pace.even(stages), limit=limit)
    held = [even.in_flight(stage) for stage in range(stages)]
    regime = model.regime(micro_batches=share, held=held, recompute=recompute)
    cut: Cut | None
    if stages == devices:
        cut = solve(model.costs, stages=stages, regime=regime, memory=memory)
    else:
        cut = solve_several(
            model.costs, schedule=schedule, devices=devices, stages=stages, regime=regime, memory=memory
        )
    if cut is None:
        return None
    return Choices(
        devices=devices,
        replicas=replicas,
        micro_batches=micro_batches,
        schedule=schedule,
        cuts=tuple(model.costs.starts[position] for position in cut.positions),
        recompute=cut.recompute,
        limit=limit,
        slabs=model.slabs,
    )

"""The forecast: given choices -> the Plan, with what each stage and device will hold and do."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

from lampseg.partition.cost import IntervalCosts
from lampseg.partition.costed import CostedNetwork
from lampseg.partition.placement import Placement, place
from lampseg.partition.plan import Choices, DeviceLoad, Link, Plan, Stage
from lampseg.partition.schedule import device_of
from lampseg.partition.several import device_peak


def plan_of(model: CostedNetwork, choices: Choices, *, memory: Sequence[float] | None = None) -> Plan:
    """The Plan of given choices: what each stage and device holds and does.

    Raises:
        UserError: the choices contradict each other, or a cut falls where no stage may begin.
    """
    choices.check()
    placement = place(model.graph, choices.cuts)
    links = _links(model, placement, choices)
    stages = _stages(model, placement, choices)
    plan = Plan(
        network=model.name,
        input_shape=model.shape,
        precision=model.precision,
        operations=len(model.graph.operations),
        digest=model.graph.digest,
        hardware=model.hardware.source,
        choices=choices,
        stages=stages,
        devices=(),
        links=links,
        step_seconds=0.0,
        bubble=0.0,
    )
    table = plan.timetable()
    stages = tuple(replace(stage, in_flight=table.in_flight(stage.index)) for stage in stages)
    plan = replace(plan, stages=stages, devices=_loads(model, stages, choices, memory))
    state = max(load.parameter_bytes for load in plan.devices)
    gradients = max(load.gradient_bytes for load in plan.devices)
    seconds = table.seconds + model.hardware.optimizer_seconds(state)
    holders = choices.replicas * choices.sharing
    if holders > 1:
        seconds += model.hardware.all_reduce_seconds(gradients, holders)
    return replace(plan, step_seconds=seconds, bubble=table.bubble)


def _places(choices: Choices) -> list[int]:
    return [
        device_of(choices.schedule, stage, stages=choices.stages, devices=choices.devices)
        for stage in range(choices.stages)
    ]


def _links(model: CostedNetwork, placement: Placement, choices: Choices) -> tuple[Link, ...]:
    """All pairs of stages between which values go; those of one device take no time."""
    places = _places(choices)
    sizes: dict[tuple[int, int], list[int]] = {}
    for value, consumers in placement.consumers().items():
        for target in consumers:
            source = placement.stage_of(value[0])
            sizes.setdefault((source, target), []).append(model.graph.values[value].nbytes)
    transfer = model.hardware.transfer_seconds
    return tuple(
        Link(a, b, len(each), sum(each), 0.0 if places[a] == places[b] else sum(map(transfer, each)))
        for (a, b), each in sorted(sizes.items())
    )


def _stages(model: CostedNetwork, placement: Placement, choices: Choices) -> tuple[Stage, ...]:
    graph, costs, count = placement.graph, model.costs, placement.stages
    places = _places(choices)
    sizes = {key: parameter.numel() for key, parameter in model.network.named_parameters()}
    owners = placement.owners()
    received, sent = [0] * count, [0] * count
    for value, consumers in placement.consumers().items():
        source, nbytes = placement.stage_of(value[0]), graph.values[value].nbytes
        for target in consumers:
            if places[source] != places[target]:
                sent[source] += nbytes
                received[target] += nbytes
    starts, ends = (0, *placement.cuts), (*placement.cuts, len(graph.operations))
    stages = []
    for k, span in enumerate(_spans(costs, starts)):
        ops = graph.operations[starts[k] : ends[k]]
        begins = next((op for op in ops if not op.plain), ops[0])
        again = choices.recompute[k] != "none"
        late = again and k == count - 1  # its only forward is the one before its backward
        trainable = int(costs.trainable[span])
        stages.append(
            Stage(
                index=k,
                device=places[k],
                first=starts[k],
                last=ends[k],
                begins=f"{begins.name} @ {begins.module or 'network'}",
                modules=tuple(dict.fromkeys(op.module for op in ops if op.module)),
                recompute=choices.recompute[k],
                parameters=sum(size for key, size in sizes.items() if owners.get(key) == k),
                parameter_bytes=int(costs.state[span]),
                gradient_bytes=trainable,
                optimizer_bytes=int(trainable * model.optimizer),
                activation_bytes=int(costs.received[span] if again else costs.saved[span]),
                in_flight=0,
                receive_bytes=received[k],
                send_bytes=sent[k],
                extra_bytes=int(costs.walk[span] - (0 if again else costs.saved[span])),
                flops=float(costs.flops[span]),
                forward_seconds=0.0 if late else float(costs.forward[span]),
                backward_seconds=float(costs.backward[span] + again * costs.forward[span]),
            )
        )
    return tuple(stages)


def _spans(costs: IntervalCosts, starts: Sequence[int]) -> list[tuple[int, int]]:
    """The stages in positions of the cost tables; an empty one (of a hand-made cut) is costed as one position."""
    positions = [*(costs.position(start) for start in starts), costs.count]
    return [(i, max(j, i + 1)) for i, j in itertools.pairwise(positions)]


def _loads(
    model: CostedNetwork, stages: Sequence[Stage], choices: Choices, memory: Sequence[float] | None
) -> tuple[DeviceLoad, ...]:
    spans = _spans(model.costs, [stage.first for stage in stages])
    held = [stage.in_flight for stage in stages]
    regime = model.regime(micro_batches=choices.share, held=held, recompute=choices.recompute)
    loads = []
    for device in range(choices.devices):
        mine = [stage for stage in stages if stage.device == device]
        peak = device_peak(model.costs, spans, choices.recompute, [stage.index for stage in mine], regime)
        parts = {
            "parameter_bytes": sum(stage.parameter_bytes for stage in mine),
            "gradient_bytes": sum(stage.gradient_bytes for stage in mine),
            "optimizer_bytes": sum(stage.optimizer_bytes for stage in mine),
            "activation_bytes": sum(stage.activation_bytes * stage.in_flight for stage in mine),
            "boundary_bytes": sum(stage.receive_bytes for stage in mine),
        }
        temporary = max(0, int(peak) - sum(parts.values()))
        peak = sum(parts.values()) + temporary
        library = max(float(model.costs.workspace[spans[stage.index]]) for stage in mine) + model.hardware.reserve_bytes
        loads.append(
            DeviceLoad(
                index=device,
                memory_bytes=None if memory is None else memory[device],
                **parts,
                temporary_bytes=temporary,
                library_bytes=int(library),
                peak_bytes=peak + int(library),
                busy_seconds=choices.share * sum(stage.forward_seconds + stage.backward_seconds for stage in mine),
            )
        )
    return tuple(loads)

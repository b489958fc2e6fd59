"""From a network, an input shape and devices to a Plan."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from lampseg.errors import UserError
from lampseg.partition.cost import SPEEDS, IntervalCosts, Training
from lampseg.partition.graph import Graph
from lampseg.partition.placement import Placement, place
from lampseg.partition.plan import Choices, DeviceLoad, Link, Plan, Stage
from lampseg.partition.record import record
from lampseg.partition.schedule import device_of, warm_up
from lampseg.partition.solver import solve
from lampseg.partition.units import format_bytes


def make_plan(
    network: nn.Module,
    *,
    shape: tuple[int, ...],
    stages: int = 1,
    training: Training | None = None,
    precision: str = "float32",
    device: str = "cpu",
    memory: Sequence[float] | None = None,
    name: str | None = None,
) -> Plan:
    """Splits `network` (in its present mode) for one micro-batch of `shape`, without running or allocating it.

    Args:
        network: its parameters may be on the meta device.
        shape: of one micro-batch, (N, C, *spatial).
        stages: how many devices.
        training: micro-batches, schedule, recompute.
        precision: float32, float64 or bfloat16 (mixed precision).
        device: the kind of device, cpu or cuda; sets the ratio of compute to memory speed.
        memory: bytes of each stage's device; None sets no limit.
        name: of the network, for the printed plan.

    Raises:
        UserError: the network can't be recorded, has fewer operations than stages, or does not fit.
    """
    training = training or Training()
    graph = record_for(network, shape=shape, precision=precision, device=device)
    costs = costs_of(graph, network, device=device)
    if stages > costs.count:
        raise UserError(
            f"{stages} stages: {type(network).__name__} can be cut into at most {costs.count} stages for an "
            f"input of shape {tuple(shape)}: ask for fewer devices"
        )
    cuts = solve(costs, stages=stages, training=training, memory=memory)
    label = name or type(network).__name__
    if cuts is None:
        assert memory is not None
        unlimited = solve(costs, stages=stages, training=training)
        assert unlimited is not None
        closest = describe(place(graph, unlimited), costs, network, training=training, precision=precision, name=label)
        needs = ", ".join(format_bytes(load.peak_bytes) for load in closest.devices)
        has = ", ".join(format_bytes(available) for available in memory)
        raise UserError(
            f"{label} on {tuple(shape)} does not fit: balanced over {stages} device(s) it needs {needs}, they "
            f"have {has}. Use more devices, `parallel.recompute: all`, `precision: bfloat16`, more "
            "micro-batches (a smaller batch each) or a smaller patch"
        )
    return describe(place(graph, cuts), costs, network, training=training, precision=precision, name=label)


def record_for(
    network: nn.Module, *, shape: tuple[int, ...], precision: str, device: str, gradients: bool = True
) -> Graph:
    """Records the network as it runs in a precision, with autograd on or off."""
    return record(
        network,
        shape=shape,
        dtype=torch.float64 if precision == "float64" else torch.float32,
        device=device,
        autocast=torch.bfloat16 if precision == "bfloat16" else None,
        gradients=gradients,
    )


def costs_of(graph: Graph, network: nn.Module, *, device: str) -> IntervalCosts:
    """The cost of every possible stage."""
    parameters = dict(network.named_parameters())
    state = {name: t.numel() * t.element_size() for name, t in (*parameters.items(), *network.named_buffers())}
    trainable = frozenset(name for name, parameter in parameters.items() if parameter.requires_grad)
    return IntervalCosts(graph, state_bytes=state, trainable=trainable, speed=SPEEDS[device])


def describe(
    placement: Placement,
    costs: IntervalCosts,
    network: nn.Module,
    *,
    training: Training,
    precision: str,
    name: str,
) -> Plan:
    """The Plan of a given placement, one stage a device: what each stage holds and costs."""
    graph, count = placement.graph, placement.stages
    choices = Choices(
        devices=count,
        replicas=1,
        micro_batches=training.micro_batches,
        schedule=training.schedule,
        cuts=placement.cuts,
        recompute=(training.recompute,) * count,
    )
    sizes = {key: parameter.numel() for key, parameter in network.named_parameters()}
    owners = placement.owners()
    sent = [0] * count
    links: dict[tuple[int, int], list[int]] = {}
    for value, consumers in placement.consumers().items():
        source = placement.stage_of(value[0])
        sent[source] += graph.values[value].nbytes * len(consumers)
        for target in consumers:
            links.setdefault((source, target), []).append(graph.values[value].nbytes)
    starts = (0, *placement.cuts)
    ends = (*placement.cuts, len(graph.operations))
    # A hand-made cut may lie between two positions of the table: it is costed from the position before it.
    positions = [max(p for p, start in enumerate(costs.starts) if start <= first) for first in starts]
    positions.append(costs.count)
    loss = training.loss_bytes_per_logit * costs.logits
    again = training.recompute != "none"
    stages, loads = [], []
    forward = [float(costs.forward[positions[k], positions[k + 1]]) for k in range(count)]
    backward = [float(costs.backward[positions[k], positions[k + 1]]) + again * forward[k] for k in range(count)]
    for k in range(count):
        at = (positions[k], positions[k + 1])
        ops = graph.operations[starts[k] : ends[k]]
        begins = next((op for op in ops if not op.plain), ops[0])
        trainable = int(costs.trainable[at])
        kept = costs.received[at] if again else costs.saved[at] + (k == count - 1) * loss
        peak = int(costs.peak_bytes(training, stage=k, stages=count)[at])
        stages.append(
            Stage(
                index=k,
                device=device_of(choices.schedule, k, stages=count, devices=count),
                first=starts[k],
                last=ends[k],
                begins=f"{begins.name} @ {begins.module or 'network'}",
                modules=tuple(dict.fromkeys(op.module for op in ops if op.module)),
                recompute=training.recompute,
                parameters=sum(size for key, size in sizes.items() if owners.get(key) == k),
                parameter_bytes=int(costs.state[at]),
                gradient_bytes=trainable,
                optimizer_bytes=int(trainable * training.optimizer_bytes_per_parameter_byte),
                activation_bytes=int(kept),
                in_flight=warm_up(training.schedule, stage=k, stages=count, micro_batches=training.micro_batches),
                receive_bytes=int(costs.received[at]),
                send_bytes=sent[k],
                extra_bytes=int(2 * costs.workspace[at]),
                flops=float(costs.flops[at]),
                forward_seconds=forward[k],
                backward_seconds=backward[k],
            )
        )
        stage = stages[-1]
        held = stage.parameter_bytes + stage.gradient_bytes + stage.optimizer_bytes
        held += stage.activation_bytes * stage.in_flight + stage.receive_bytes
        loads.append(
            DeviceLoad(
                index=k,
                memory_bytes=None,
                parameter_bytes=stage.parameter_bytes,
                gradient_bytes=stage.gradient_bytes,
                optimizer_bytes=stage.optimizer_bytes,
                activation_bytes=stage.activation_bytes * stage.in_flight,
                boundary_bytes=stage.receive_bytes,
                workspace_bytes=peak - held,
                peak_bytes=peak,
                busy_seconds=(forward[k] + backward[k]) * training.micro_batches,
            )
        )
    plan = Plan(
        network=name,
        input_shape=tuple(graph.input.shape),
        precision=precision,
        operations=len(graph.operations),
        digest=graph.digest,
        hardware="",
        choices=choices,
        stages=tuple(stages),
        devices=tuple(loads),
        links=tuple(Link(a, b, len(sizes), sum(sizes), 0.0) for (a, b), sizes in sorted(links.items())),
        step_seconds=0.0,
        bubble=0.0,
    )
    table = plan.timetable()
    return replace(plan, step_seconds=table.seconds, bubble=table.bubble)

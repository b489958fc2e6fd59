"""From a network, an input shape and devices to a Plan."""

from collections.abc import Sequence

import torch
from torch import nn

from lampseg.errors import UserError
from lampseg.partition.cost import SPEEDS, IntervalCosts, Training, in_flight
from lampseg.partition.graph import Graph
from lampseg.partition.placement import Placement, place
from lampseg.partition.plan import Plan, Stage, format_bytes
from lampseg.partition.record import record
from lampseg.partition.solver import solve


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
        needs = ", ".join(format_bytes(stage.peak_bytes) for stage in closest.stages)
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
    """The Plan of a given placement: what each stage holds and costs."""
    graph, count = placement.graph, placement.stages
    sizes = {key: parameter.numel() for key, parameter in network.named_parameters()}
    owners = placement.owners()
    sent = [0] * count
    for value, consumers in placement.consumers().items():
        sent[placement.stage_of(value[0])] += graph.values[value].nbytes * len(consumers)
    starts = (0, *placement.cuts)
    ends = (*placement.cuts, len(graph.operations))
    seconds = costs.seconds(training)
    # A hand-made cut may lie between two positions of the table: it is costed from the position before it.
    positions = [max(p for p, start in enumerate(costs.starts) if start <= first) for first in starts]
    positions.append(costs.count)
    times = [float(seconds[positions[k], positions[k + 1]]) for k in range(count)]
    loss = training.loss_bytes_per_logit * costs.logits
    stages = []
    for k in range(count):
        at = (positions[k], positions[k + 1])
        ops = graph.operations[starts[k] : ends[k]]
        begins = next((op for op in ops if not op.plain), ops[0])
        trainable = int(costs.trainable[at])
        stages.append(
            Stage(
                index=k,
                first=starts[k],
                last=ends[k],
                begins=f"{begins.name} @ {begins.module or 'network'}",
                modules=tuple(dict.fromkeys(op.module for op in ops if op.module)),
                parameters=sum(size for key, size in sizes.items() if owners.get(key) == k),
                parameter_bytes=int(costs.state[at]),
                gradient_bytes=trainable,
                optimizer_bytes=int(trainable * training.optimizer_bytes_per_parameter_byte),
                activation_bytes=int(costs.saved[at] + (k == count - 1) * loss),
                in_flight=in_flight(training.schedule, stage=k, stages=count, micro_batches=training.micro_batches),
                receive_bytes=int(costs.received[at]),
                send_bytes=sent[k],
                peak_bytes=int(costs.peak_bytes(training, stage=k, stages=count)[at]),
                flops=float(costs.flops[at]),
                time_share=times[k] / max(sum(times), 1e-30),
            )
        )
    return Plan(
        network=name,
        input_shape=tuple(graph.input.shape),
        micro_batches=training.micro_batches,
        schedule=training.schedule,
        recompute=training.recompute,
        precision=precision,
        operations=len(graph.operations),
        digest=graph.digest,
        stages=tuple(stages),
    )

"""A network recorded for one micro-batch's shape, with the cost of every possible stage: what plans are made from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_unflatten

from lampseg.hardware.device import Hardware, Precision, hardware_for
from lampseg.hardware.faults import refuse_faulty
from lampseg.partition.cost import IntervalCosts, Rates, Regime
from lampseg.partition.plan import Recompute
from lampseg.recording.around import Around
from lampseg.recording.graph import Graph
from lampseg.recording.record import record
from lampseg.recording.tally import Tally, tally


class MicroBatchLoss(Protocol):
    """The loss of one micro-batch from the network's output and the shape of its input, with labels of any content."""

    def __call__(self, output: Any, shape: tuple[int, ...], placed: Callable[[Tensor], Tensor] = ..., /) -> Tensor:
        """`placed` marks labels as a slab, if the output is one."""
        ...


def record_for(
    network: nn.Module,
    *,
    shape: tuple[int, ...],
    precision: str,
    device: str,
    gradients: bool = True,
    backward: bool = False,
    around: Around | None = None,
) -> Graph:
    """Records the network as it runs in a precision, with autograd on or off; with `backward` its backward, too.

    Raises:
        UserError: it can't be recorded, or its gradients would be wrong there (`hardware.faults`).
    """
    graph = record(
        network,
        shape=shape,
        dtype=torch.float64 if precision == "float64" else torch.float32,
        device=device,
        autocast=torch.bfloat16 if precision == "bfloat16" else None,
        gradients=gradients,
        backward=backward,
        around=around,
    )
    if gradients:
        refuse_faulty(graph, precision=precision, device=device)
    return graph


@dataclass(frozen=True)
class CostedNetwork:
    """A network recorded for one micro-batch's shape, with the cost of every possible stage."""

    name: str
    network: nn.Module
    graph: Graph
    costs: IntervalCosts
    precision: str
    hardware: Hardware
    optimizer: float = 1.0
    """Bytes that the optimizer keeps for each byte of a trainable parameter."""
    around: Around | None = None
    """What the network runs in: on a slab of each volume, the graph is that of the slab."""
    slabs: tuple[int, int, int] = (1, 1, 1)
    """Ranks along each spatial dimension that share a volume then."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one whole micro-batch, (N, C, *spatial)."""
        return tuple(self.graph.input.shape) if self.around is None else self.around.shape

    def regime(self, *, micro_batches: int, held: Sequence[int], recompute: Sequence[Recompute] | None) -> Regime:
        return Regime(micro_batches, tuple(held), None if recompute is None else tuple(recompute), self.optimizer)


def cost_network(
    network: nn.Module,
    *,
    shape: tuple[int, ...],
    precision: str = "float32",
    hardware: Hardware | None = None,
    training: bool = True,
    optimizer: float = 1.0,
    loss: MicroBatchLoss | None = None,
    name: str | None = None,
    around: Around | None = None,
    slabs: tuple[int, int, int] = (1, 1, 1),
) -> CostedNetwork:
    """Records `network` (in its present mode) and costs it; nothing is run or allocated.

    Args:
        network: its parameters may be on the meta device.
        shape: of one micro-batch, (N, C, *spatial).
        precision: float32, float64 or bfloat16 (mixed precision).
        hardware: None: a CPU of typical speed.
        training: with a backward.
        optimizer: bytes that it keeps for each byte of a trainable parameter.
        loss: None costs nothing.
        name: of the network, for the printed plan.
        around, slabs: see `CostedNetwork`.

    Raises:
        UserError: the network can't be recorded.
    """
    hardware = hardware or hardware_for(kind="cpu", processes=1)
    graph = record_for(
        network,
        shape=shape,
        precision=precision,
        device=hardware.kind,
        gradients=training,
        backward=training,
        around=around,
    )
    costs = costs_of(
        graph,
        network,
        hardware=hardware,
        precision=precision,
        loss=_loss_tally(loss, graph, around) if loss and training else None,
    )
    return CostedNetwork(
        name or type(network).__name__, network, graph, costs, precision, hardware, optimizer, around, slabs
    )


def costs_of(
    graph: Graph,
    network: nn.Module,
    *,
    hardware: Hardware,
    precision: str = "float32",
    loss: Tally | None = None,
) -> IntervalCosts:
    """The cost of every possible stage."""
    parameters = dict(network.named_parameters())
    state = {name: t.numel() * t.element_size() for name, t in (*parameters.items(), *network.named_buffers())}
    rates = Rates(
        kernel=lambda kernel: hardware.seconds(kernel, precision=cast(Precision, precision)),
        workspace=hardware.workspace_bytes,
        transfer=hardware.transfer_seconds,
    )
    trainable = frozenset(name for name, parameter in parameters.items() if parameter.requires_grad)
    return IntervalCosts(graph, state_bytes=state, trainable=trainable, rates=rates, loss=loss)


def _loss_tally(loss: MicroBatchLoss, graph: Graph, around: Around | None) -> Tally:
    values = [graph.values[value] for value in graph.outputs]

    def make() -> list[Tensor]:
        return [torch.empty(value.shape, dtype=value.dtype).requires_grad_() for value in values]

    def run(outputs: list[Tensor]) -> Tensor:
        if around is None:
            return loss(tree_unflatten(outputs, graph.output_spec), graph.input.shape)
        parts = [around.marked(t, graph.notes[value]) for t, value in zip(outputs, graph.outputs, strict=True)]
        with around.mode():
            return loss(tree_unflatten(parts, graph.output_spec), graph.input.shape, around.placed)

    return tally(make, run)

"""A micro-batch in flight: what a stage keeps of it between its forward and its backward."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from lampseg.parallel.pipeline.routes import Routes
from lampseg.partition.placement import Placement
from lampseg.partition.schedule import Action
from lampseg.recording.graph import Value, ValueId


@dataclass
class Arrived:
    """A received value: its data until it is read, then its gradient."""

    data: Tensor | None
    gradient: Tensor | None = None


@dataclass
class Flight:
    """One micro-batch on one stage."""

    stage: int
    micro_batch: int
    """Its number within the replica, as in the timetable."""
    placement: Placement
    own: Routes
    """Those of the stage."""
    seed: int
    """For random operations."""
    x: Tensor | None = None
    """The input, on the first stage; kept for recompute."""
    edges: dict[ValueId, GradientEdge] = field(default_factory=dict)
    """Where the gradients of sent values enter my part of the graph."""
    arrivals: dict[ValueId, Arrived] = field(default_factory=dict)
    loss: Tensor | None = None
    buffers: dict[int, Tensor] = field(default_factory=dict)
    """Copies of my buffers (by id) as they were before the forward, for recompute."""

    @property
    def action(self) -> Action:
        """Its forward."""
        return Action("forward", self.stage, self.micro_batch)

    def keep_buffers(self, network: nn.Module) -> None:
        """Copies my buffers, so that a second forward finds them as the first did, and does not update them again."""
        mine = {name for op in self.placement.operations_of(self.stage) for name in op.state}
        self.buffers = {id(buffer): buffer.clone() for name, buffer in network.named_buffers() if name in mine}

    def read(self, value: Value, *, anchor: Tensor, gradients: bool, keep: bool) -> Tensor:
        """The data of a received value; with `gradients`, its gradient will be found in `arrivals`."""
        arrived = self.arrivals[value.id]
        if gradients and value.carries_gradient:
            with torch.enable_grad():  # it may be read first where the network needs no gradient, and then again
                entered: Tensor = _Arrive.apply(anchor, arrived)  # type: ignore[no-untyped-call]
            return entered
        assert arrived.data is not None
        data = arrived.data
        if not keep:
            arrived.data = None
        return data


class _Arrive(torch.autograd.Function):
    """Enters a received tensor into the autograd graph, which then holds its data only where an operation saves it.

    (A leaf with requires_grad would be held by its AccumulateGrad node until backward, even after a concatenation.)
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, arrived: Arrived) -> Tensor:
        ctx.arrived = arrived
        data, arrived.data = arrived.data, None
        assert data is not None
        return data.view_as(data)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        ctx.arrived.gradient = gradients[0]
        return None, None

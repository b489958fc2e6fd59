"""Passes: one forward or backward of one micro-batch through one stage, by the network under a stage mode."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from lampseg.errors import GraphMismatchError
from lampseg.parallel.pipeline.flight import Arrived, Flight
from lampseg.parallel.pipeline.stage_mode import StageMode
from lampseg.parallel.pipeline.transport import Transport
from lampseg.parallel.spatial.around import StageSlabs
from lampseg.partition.schedule import Action
from lampseg.recording.custom_functions import visible_functions
from lampseg.recording.graph import INPUT, Value, ValueId


class Passes:
    """Runs passes of the stages that lie on one device.

    Args:
        network: the whole network.
        device: where it computes.
        last: the stage that yields the network's output.
        precision: float32, float64 or bfloat16 (mixed).
        slabs: if the stages run on slabs of volumes, mine.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: torch.device,
        last: int,
        precision: str,
        slabs: StageSlabs | None = None,
    ) -> None:
        self.network, self.device, self.last, self.precision, self.slabs = network, device, last, precision, slabs
        self._anchor = torch.empty(0, device=device, requires_grad=True)

    def forward(self, flight: Flight, *, transport: Transport | None, loss: Callable[[Any], Tensor]) -> None:
        """Keeps the graph for the backward; without `transport` what arrived is what an earlier pass kept."""
        output = self.run(flight, transport=transport)
        flight.x = None
        flight.buffers = {}
        if flight.stage == self.last:
            with contextlib.nullcontext() if self.slabs is None else self.slabs.spatial:
                flight.loss = loss(output)

    def forward_without_graph(self, flight: Flight, *, transport: Transport) -> None:
        """Keeps what a second forward needs, just before the backward."""
        if flight.stage == self.last:
            # Nobody waits for the last stage's output: its only forward is the one before its backward, which
            # then updates the buffers.
            for route in flight.own.receives:
                flight.arrivals[route.value.id] = Arrived(transport.take(flight.action, route.value.id)[0].data)
            transport.take_rest(flight.action)
            return
        kept = flight.x
        if kept is not None and flight.placement.graph.writes_input:
            flight.x = kept.clone()
        flight.keep_buffers(self.network)
        buffers, flight.buffers = flight.buffers, {}
        with torch.no_grad():
            self.run(flight, transport=transport, keep=True)
        flight.x, flight.buffers = kept, buffers

    def run(self, flight: Flight, *, transport: Transport | None, keep: bool = False) -> Any:
        """One run of the network with this stage's operations real; the network's output on the last stage."""
        routes, graph, slabs = flight.own, flight.placement.graph, self.slabs
        gradients = torch.is_grad_enabled()

        def receive(value: Value) -> Tensor:
            if transport is not None:
                flight.arrivals[value.id] = Arrived(transport.take(flight.action, value.id)[0].data)
            data = flight.read(value, anchor=self._anchor, gradients=gradients, keep=keep)
            return data if slabs is None else slabs.marked(data, graph, value.id)

        def send(value: ValueId, tensor: Tensor) -> None:
            going = [r for r in routes.sends[graph.ready_at(value)] if r.value.id == value]
            with torch._C.DisableTorchFunction():  # what travels is no slab, but memory
                if gradients and going[0].value.carries_gradient:
                    if not tensor.requires_grad:
                        raise GraphMismatchError(f"value {value} was recorded with a gradient, it has none")
                    flight.edges[value] = get_gradient_edge(tensor)
                if transport is not None:
                    for route in going:
                        transport.send(flight.action, route, tensor)

        mode = StageMode(
            flight.placement,
            stage=flight.stage,
            routes=routes,
            device=self.device,
            receive=receive,
            send=send,
            seed=flight.seed,
            buffers=flight.buffers,
            drawing=None if slabs is None else slabs.drawing,
        )
        if slabs is not None and flight.x is not None:
            slabs.marked(flight.x, graph, (INPUT, 0))
        x = mode.begin(flight.x)
        with self._around(flight), self._autocast(), visible_functions(), mode:
            output = self.network(x)
        mode.check_complete()
        if flight.stage == self.last:
            output = mode.finish(output)
        if transport is not None:
            transport.take_rest(flight.action)
        return output

    def backward(self, flight: Flight, transport: Transport) -> None:
        """Adds to the parameters' gradients, and returns those of the received values to where they were made."""
        action = Action("backward", flight.stage, flight.micro_batch)
        roots: list[Any] = []
        gradients: list[Tensor | None] = []
        if flight.loss is not None:
            # On slabs everyone has the whole loss, and contributes a share of the one gradient.
            roots.append(flight.loss if self.slabs is None else flight.loss / self.slabs.size)
            gradients.append(None)
        for value in dict.fromkeys(route.value.id for route in flight.own.gradients_in):
            edge, total = flight.edges.pop(value), _sum_of(transport, action, value)
            if total is not None:
                roots.append(edge)
                gradients.append(total)
        transport.take_rest(action)
        if roots:
            torch.autograd.backward(roots, gradients)
        del roots, gradients
        for route in flight.own.gradients_out:
            arrived = flight.arrivals.pop(route.value.id, None)
            # There is none if it was received for the output's sake, or is not on the way to the loss.
            transport.send(action, route, arrived.gradient if arrived is not None else None)

    def _around(self, flight: Flight) -> contextlib.AbstractContextManager[None]:
        if self.slabs is None:
            return contextlib.nullcontext()
        first = (0, *flight.placement.cuts)[flight.stage]
        return self.slabs.entered(flight.placement.graph, first=first)

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")


def _sum_of(transport: Transport, action: Action, value: ValueId) -> Tensor | None:
    """A value's gradient: the sum over the stages that read it, in their order."""
    total: Tensor | None = None
    mine = False
    for delivery in transport.take(action, value):
        if delivery.data is None:
            continue
        if total is None:
            total, mine = delivery.data, not delivery.shared
        elif mine:
            total += delivery.data
        else:  # autograd may have given the same memory to another value as its gradient
            total, mine = total + delivery.data, True
    return total

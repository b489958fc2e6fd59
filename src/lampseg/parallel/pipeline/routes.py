"""Routes: which values one stage receives and sends, from and to whom, in which order.

A value goes straight from the stage that makes it to every stage that reads it, once each: the boundary between
neighbours and a skip over several stages are the same thing. The order is the order in which values become final;
gradients travel the same way back, in reverse order. Whether a route is a message, or both of its stages lie on one
device, is the matter of `transport`.
"""

from dataclasses import dataclass

from lampseg.parallel.world import Kind
from lampseg.partition.placement import Placement
from lampseg.recording.graph import Value, ValueId


@dataclass(frozen=True)
class Route:
    """One value on its way from the stage that makes it to one that reads it."""

    value: Value
    source: int
    target: int

    def sender(self, kind: Kind) -> int:
        """The stage that sends: a value goes from source to target, its gradient the other way."""
        return self.source if kind == "forward" else self.target

    def receiver(self, kind: Kind) -> int:
        return self.target if kind == "forward" else self.source


@dataclass(frozen=True)
class Routes:
    """What one stage exchanges for one micro-batch."""

    receives: tuple[Route, ...]
    sends: dict[int, tuple[Route, ...]]
    """By the operation after which they are ready (-1: the input itself)."""
    last_read: dict[ValueId, int]
    """The last operation of this stage that reads a received value; it may be released then."""

    @property
    def values_out(self) -> tuple[Route, ...]:
        """Sent values, in the order of sending."""
        return tuple(route for ready in sorted(self.sends) for route in self.sends[ready])

    @property
    def gradients_out(self) -> tuple[Route, ...]:
        """Received values whose gradient this stage returns, in the order of sending."""
        return tuple(route for route in reversed(self.receives) if route.value.carries_gradient)

    @property
    def gradients_in(self) -> tuple[Route, ...]:
        """Sent values whose gradient comes back, in the order of receiving."""
        return tuple(route for route in reversed(self.values_out) if route.value.carries_gradient)

    def arriving(self, kind: Kind) -> tuple[Route, ...]:
        """What a forward or a backward of this stage receives."""
        return self.receives if kind == "forward" else self.gradients_in

    def leaving(self, kind: Kind) -> tuple[Route, ...]:
        """What a forward or a backward of this stage sends, in the order of sending."""
        return self.values_out if kind == "forward" else self.gradients_out


def routes_of(placement: Placement, stage: int) -> Routes:
    """The routes that begin or end at a stage."""
    graph = placement.graph
    receives: list[Route] = []
    sends: dict[int, list[Route]] = {}
    consumers = placement.consumers()
    for value in sorted(consumers, key=lambda v: (graph.ready_at(v), v)):
        source = placement.stage_of(value[0])
        for target in consumers[value]:
            route = Route(graph.values[value], source, target)
            if target == stage:
                receives.append(route)
            if source == stage:
                sends.setdefault(graph.ready_at(value), []).append(route)
    received = {route.value.id for route in receives}
    last_read = {
        value: op.index
        for op in graph.operations
        if placement.stage_of(op.index) == stage
        for value in op.reads
        if value in received
    }
    for value in graph.outputs:
        if value in received:
            last_read[value] = len(graph.operations)
    return Routes(tuple(receives), {ready: tuple(routes) for ready, routes in sends.items()}, last_read)

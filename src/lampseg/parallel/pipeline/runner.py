"""The runner: executes a schedule on one stage, with an unmodified network, for micro-batches of any shapes."""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from lampseg.errors import GraphMismatchError
from lampseg.parallel.pipeline.flight import Arrived, Flight
from lampseg.parallel.pipeline.routes import Routes, routes_of
from lampseg.parallel.pipeline.schedule import Action, actions
from lampseg.parallel.pipeline.stage_mode import StageMode
from lampseg.parallel.pipeline.transport import Transport
from lampseg.parallel.randomness import mix
from lampseg.parallel.world import World
from lampseg.partition.costed import record_for
from lampseg.partition.custom_functions import visible_functions
from lampseg.partition.graph import Value, ValueId
from lampseg.partition.placement import Placement, transfer
from lampseg.partition.plan import Recompute
from lampseg.partition.schedule import Schedule

Shape = tuple[int, ...]


class PipelineRunner:
    """One stage of a pipeline.

    Args:
        network: the whole network; parameters of other stages may be on the meta device.
        placement: the planned cut; carried over to every other shape and to eval mode.
        world: stage s runs on rank s.
        precision: float32, float64 or bfloat16 (mixed).
        schedule, recompute: see `lampseg.parallel.pipeline.schedule`. Recompute keeps what a stage received
            instead of its activations, and runs its operations again before their backward: for all micro-batches,
            or for all but the last, whose backward begins at once.
    """

    def __init__(
        self,
        network: nn.Module,
        placement: Placement,
        *,
        world: World,
        precision: str = "float32",
        schedule: Schedule = "1f1b",
        recompute: Recompute = "none",
    ) -> None:
        if placement.stages != world.size:
            raise ValueError(f"a plan of {placement.stages} stages needs as many processes, there are {world.size}")
        self.network, self.world, self.precision = network, world, precision
        self.schedule, self.recompute = schedule, recompute
        self._planned = placement
        self._placements: dict[Any, tuple[Placement, Routes]] = {}
        self._anchor = torch.empty(0, device=world.device, requires_grad=True)
        self.waited = 0.0
        """Seconds of the last step in which this process waited for messages."""
        self.busy = 0.0
        """Seconds of the last step in which it did not."""

    @property
    def stage(self) -> int:
        return self.world.rank

    @property
    def stages(self) -> int:
        return self.world.size

    def step(
        self,
        shapes: Sequence[Shape],
        *,
        load: Callable[[int], Tensor],
        loss: Callable[[int, Any], Tensor],
        seed: int = 0,
    ) -> list[float]:
        """Forward and backward of one mini-batch; gradients are added to the parameters' `.grad`.

        Args:
            shapes: of each micro-batch's input; they may differ.
            load: gives the input of micro-batch m on this process's device; called on the first stage only.
            loss: gives the loss of micro-batch m from the network's output; called on the last stage only. The
                mini-batch's loss is the sum over micro-batches, so each must carry its weight (e.g. 1/M).
            seed: of the step, for random operations.

        Returns:
            The losses of the micro-batches on the last stage, elsewhere nothing.
        """
        order = actions(self.schedule, stage=self.stage, stages=self.stages, micro_batches=len(shapes))
        placed = [self._lookup(tuple(shape)) for shape in shapes]
        routes = [routes for _, routes in placed]
        forward, backward = self._transports()
        begun = time.perf_counter()
        flights: dict[int, Flight] = {}
        losses: list[Tensor] = []
        for n, (kind, m) in enumerate(order):
            for action in order[n : n + 2]:  # what comes next arrives while this one computes
                self._post(action, routes[action.micro_batch], forward, backward)
            again = self._runs_again(m, len(shapes))
            micro_seed = mix(seed, m)
            if kind == "forward":
                forward.next_batch()
                flights[m] = flight = Flight(*placed[m], x=load(m) if self.world.first else None)
                if again:
                    self._forward_without_graph(flight, m, forward=forward, seed=micro_seed)
                else:
                    self._forward(flight, m, loss=loss, forward=forward, seed=micro_seed)
            else:
                flight = flights.pop(m)
                if again:
                    self._forward(flight, m, loss=loss, forward=None, seed=micro_seed)
                backward.next_batch()
                self._backward(flight, m, backward)
                if flight.loss is not None:
                    losses.append(flight.loss.detach())
        forward.flush()
        backward.flush()
        self.waited = forward.waited + backward.waited
        self.busy = time.perf_counter() - begun - self.waited
        return [float(value) for value in losses]

    def _runs_again(self, m: int, count: int) -> bool:
        """Whether micro-batch m is run (again) just before its backward.

        The last stage puts off every forward to that moment, at no cost, so that its micro-batches stay in order
        (BatchNorm's running statistics depend on it).
        """
        if self.recompute == "all_but_last":
            return m < count - 1 or self.world.last
        return self.recompute == "all"

    @torch.no_grad()
    def predict(self, shapes: Sequence[Shape], *, load: Callable[[int], Tensor]) -> Iterator[Any]:
        """Forward passes without an autograd graph, in the network's present mode.

        Yields, for every micro-batch, the network's output on the last stage, elsewhere None.
        """
        forward, _ = self._transports()
        placed = [self._lookup(tuple(shape), gradients=False) for shape in shapes]
        for m in range(len(shapes)):
            for ahead in range(m, min(m + 2, len(shapes))):
                forward.post(Action("forward", ahead), placed[ahead][1].receives, peer="source")
            forward.next_batch()
            flight = Flight(*placed[m], x=load(m) if self.world.first else None)
            output = self._run(flight, m, forward=forward, seed=m)
            yield output if self.world.last else None
            del output
        forward.flush()

    def _transports(self) -> tuple[Transport, Transport]:
        device, depth = self.world.device, self.stages
        return (
            Transport(self.world.forward, device=device, depth=depth),
            Transport(self.world.backward, device=device, depth=depth),
        )

    def _post(self, action: Action, routes: Routes, forward: Transport, backward: Transport) -> None:
        if action.kind == "forward":
            forward.post(action, routes.receives, peer="source")
        else:
            backward.post(action, routes.gradients_in, peer="target")

    def _forward(
        self,
        flight: Flight,
        m: int,
        *,
        loss: Callable[[int, Any], Tensor],
        forward: Transport | None,
        seed: int,
    ) -> None:
        output = self._run(flight, m, forward=forward, seed=seed)
        flight.x = None
        flight.buffers = {}
        if self.world.last:
            flight.loss = loss(m, output)

    def _forward_without_graph(self, flight: Flight, m: int, *, forward: Transport, seed: int) -> None:
        if self.world.last:
            # Nobody waits for the last stage's output: its only forward is the one before its backward, which
            # then updates the buffers.
            for route in flight.routes.receives:
                flight.arrivals[route.value.id] = Arrived(forward.take(Action("forward", m), route.value.id)[0])
            forward.take_rest(Action("forward", m))
            return
        kept = flight.x
        if kept is not None and flight.placement.graph.writes_input:
            flight.x = kept.clone()
        flight.keep_buffers(self.network)
        buffers, flight.buffers = flight.buffers, {}
        with torch.no_grad():
            self._run(flight, m, forward=forward, seed=seed, keep=True)
        flight.x, flight.buffers = kept, buffers

    def _run(
        self,
        flight: Flight,
        m: int,
        *,
        forward: Transport | None,
        seed: int,
        keep: bool = False,
    ) -> Any:
        """One forward pass; without `forward` the arrivals are those kept by an earlier one (`keep`)."""
        placement, routes = flight.placement, flight.routes
        key = Action("forward", m)
        gradients = torch.is_grad_enabled()

        def receive(value: Value) -> Tensor:
            if forward is not None:
                flight.arrivals[value.id] = Arrived(forward.take(key, value.id)[0])
            return flight.read(value, anchor=self._anchor, gradients=gradients, keep=keep)

        def send(value: ValueId, tensor: Tensor) -> None:
            going = [route for route in routes.sends[placement.graph.ready_at(value)] if route.value.id == value]
            if gradients and going[0].value.carries_gradient:
                if not tensor.requires_grad:
                    raise GraphMismatchError(f"value {value} was recorded with a gradient, it has none")
                flight.edges[value] = get_gradient_edge(tensor)
            if forward is not None:
                for route in going:
                    forward.send(tensor, route.target)

        mode = StageMode(
            placement,
            stage=self.stage,
            routes=routes,
            device=self.world.device,
            receive=receive,
            send=send,
            seed=seed,
            buffers=flight.buffers,
        )
        x = mode.begin(flight.x)
        with self._autocast(), visible_functions(), mode:
            output = self.network(x)
        mode.check_complete()
        if self.world.last:
            output = mode.finish(output)
        if forward is not None:
            forward.take_rest(key)
        return output

    def _backward(self, flight: Flight, m: int, backward: Transport) -> None:
        roots: list[Any] = []
        gradients: list[Tensor | None] = []
        if flight.loss is not None:
            roots.append(flight.loss)
            gradients.append(None)
        key = Action("backward", m)
        for value in dict.fromkeys(route.value.id for route in flight.routes.gradients_in):
            total, *others = backward.take(key, value)
            for other in others:
                total += other
            roots.append(flight.edges.pop(value))
            gradients.append(total)
        backward.take_rest(key)
        if roots:
            torch.autograd.backward(roots, gradients)
        for route in flight.routes.gradients_out:
            arrived = flight.arrivals.get(route.value.id)
            gradient = arrived.gradient if arrived is not None else None
            if gradient is None:  # received for the output's sake, or not on the way to the loss
                gradient = torch.zeros(route.value.shape, dtype=route.value.dtype, device=self.world.device)
            backward.send(gradient, route.source)

    def _autocast(self) -> contextlib.AbstractContextManager[None]:
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16")

    def _lookup(self, shape: Shape, *, gradients: bool = True) -> tuple[Placement, Routes]:
        """The placement for a shape in the network's present mode; recorded on first use."""
        modes = tuple(module.training for module in self.network.modules())
        trained = tuple(parameter.requires_grad for parameter in self.network.parameters())
        key = (shape, modes, trained, gradients)
        if key not in self._placements:
            kind = self.world.device.type
            graph = record_for(self.network, shape=shape, precision=self.precision, device=kind, gradients=gradients)
            if len(set(self.world.gather(graph.signature))) > 1:
                raise GraphMismatchError(
                    f"the network's forward pass differs between ranks for an input of shape {shape}: build it alike "
                    "everywhere; it must not depend on the process (hash order, rank, environment)"
                )
            placement = transfer(self._planned, graph)
            self._placements[key] = placement, routes_of(placement, self.stage)
        return self._placements[key]

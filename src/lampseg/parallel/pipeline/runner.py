"""The runner: executes a plan's timetable on one device, with an unmodified network and any shapes."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lampseg.errors import GraphMismatchError
from lampseg.parallel.mesh import Mesh
from lampseg.parallel.pipeline.flight import Flight
from lampseg.parallel.pipeline.itinerary import Itinerary
from lampseg.parallel.pipeline.passes import Passes
from lampseg.parallel.pipeline.routes import Routes, routes_of
from lampseg.parallel.pipeline.transport import Transport
from lampseg.parallel.randomness import mix
from lampseg.parallel.replicas import Replicas
from lampseg.parallel.spatial.around import StageSlabs
from lampseg.parallel.spatial.cutting import Cutting
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.parallel.state import owners_of
from lampseg.partition.costed import record_for
from lampseg.partition.placement import Placement, transfer
from lampseg.partition.plan import Choices
from lampseg.partition.schedule import Pace, Timetable, device_of, forward_timetable, timetable
from lampseg.recording.kernels import storage_of

Shape = tuple[int, ...]


class PipelineRunner:
    """One device of a pipeline, with the stages that lie on it.

    Args:
        network: the whole network; parameters of stages on other devices may be on the meta device.
        placement: the planned cut; carried over to every other shape and to eval mode.
        mesh: the plan's replicas and devices.
        choices: schedule, recompute, limit; see `lampseg.partition.schedule`. Recompute keeps what a stage received
            instead of its activations, and runs its operations again before their backward: for all micro-batches,
            or for all but the last, whose backward begins soonest.
        pace: what the timetable is made from; the same on every rank. None: even stages.
        precision: float32, float64 or bfloat16 (mixed).
        spatial: where several share a stage, each with a slab of every volume: their slab mode.

    Raises:
        UserError: the choices contradict each other.
    """

    def __init__(
        self,
        network: nn.Module,
        placement: Placement,
        *,
        mesh: Mesh,
        choices: Choices,
        pace: Pace | None = None,
        precision: str = "float32",
        spatial: SpatialParallel | None = None,
    ) -> None:
        choices.check()
        assert placement.stages == choices.stages, "the placement is that of the choices"
        assert (mesh.replicas, mesh.places, mesh.sharing) == (choices.replicas, choices.devices, choices.sharing)
        self.network, self.mesh, self.choices, self.precision = network, mesh, choices, precision
        self.pace = pace or Pace.even(choices.stages)
        self.places = places_of(choices)
        self._planned = placement
        self._placements: dict[Any, tuple[Placement, tuple[Routes, ...]]] = {}
        last = choices.stages - 1
        self.spatial = spatial
        self._slabs = None if spatial is None else StageSlabs(spatial)
        self._cutting = None if spatial is None else Cutting(spatial, mesh=mesh.together)
        self._passes = Passes(network, device=mesh.world.device, last=last, precision=precision, slabs=self._slabs)
        self._replicas = Replicas(network, mesh=mesh, stages=owners_of(network, placement))
        self.waited = 0.0
        """Seconds of the last step in which this process waited for messages."""
        self.busy = 0.0
        """Seconds of the last step in which it did not."""
        self.seconds: dict[int, tuple[float, float]] = {}
        """Of the last step, for each of my stages: seconds in its forwards and in its backwards, without loading
        the input and waiting for messages. On CUDA, where it is the device that computes and waits, those in which
        this process was occupied."""

    @property
    def yields_output(self) -> bool:
        """Whether losses and labels of whole volumes are given on this rank: of each replica one has them."""
        return self.has_output and self.mesh.slab == 0

    @property
    def has_output(self) -> bool:
        """Whether the network's output, or a slab of it, is on this rank."""
        return self.places[-1] == self.mesh.place

    def step(
        self,
        shapes: Sequence[Shape],
        *,
        load: Callable[[int], Tensor],
        loss: Callable[[int, Any], Tensor],
        seed: int = 0,
    ) -> list[float]:
        """Forward and backward of one mini-batch; its gradients are added to the parameters' `.grad`.

        Args:
            shapes: of each micro-batch's input, of all replicas; they may differ.
            load: gives my part of the input of micro-batch m (see `region`) on my device; called where the first
                stage lies.
            loss: gives the loss of micro-batch m from the network's output; called where the output is, and with slabs
                on all their ranks alike, where the output is a slab, as its target must be (see `placed`). The
                mini-batch's loss is the sum over micro-batches, so each must carry its weight (e.g. 1/M).
            seed: of the step, for random operations.

        Returns:
            The losses of my replica's micro-batches where the output is, elsewhere nothing.

        Raises:
            UserError: there are more replicas than micro-batches, or the network does what replicas can't.
        """
        block = self.mesh.share(len(shapes))
        placed = [self._lookup(tuple(shapes[m])) for m in block]
        self._replicas.begin([placement.graph for placement, _ in placed])
        transport = self._transport(self._timetable(len(block)), placed)
        begun = time.perf_counter()
        seconds = {stage: [0.0, 0.0] for stage, place in enumerate(self.places) if place == self.mesh.place}
        flights: dict[tuple[int, int], Flight] = {}
        losses: list[Tensor] = []
        for number, (kind, stage, m) in enumerate(transport.order):
            transport.begin(number)
            if kind == "forward":
                flight = flights[stage, m] = self._flight(
                    stage, m, placed[m], seed=mix(seed, block[m]), x=load(block[m]) if stage == 0 else None
                )
            else:
                flight = flights.pop((stage, m))
            started, waited = time.perf_counter(), transport.waited
            again = self.choices.runs_again(stage, m, len(block))
            if kind == "forward" and again:
                self._passes.forward_without_graph(flight, transport=transport)
            elif kind == "forward" or again:
                self._passes.forward(
                    flight,
                    transport=transport if kind == "forward" else None,
                    loss=lambda output, m=m: loss(block[m], output),  # type: ignore[misc]
                )
            if kind == "backward":
                self._passes.backward(flight, transport)
                if flight.loss is not None:
                    losses.append(flight.loss.detach())
            seconds[stage][kind == "backward"] += time.perf_counter() - started - (transport.waited - waited)
            if kind == "backward" and m == len(block) - 1:
                self._replicas.add(stage)
            del flight
        transport.flush()
        self._replicas.finish()
        self.waited = transport.waited + self._replicas.waited
        self.busy = time.perf_counter() - begun - self.waited
        self.seconds = {stage: (forward, backward) for stage, (forward, backward) in seconds.items()}
        return [float(value) for value in losses] if self.yields_output else []

    @torch.no_grad()
    def predict(self, shapes: Sequence[Shape], *, load: Callable[[int], Tensor]) -> Iterator[Any]:
        """Forward passes without an autograd graph, in the network's present mode, through my replica alone.

        Yields, for every micro-batch, the network's output (or a slab of it) where it is, elsewhere None.
        """
        placed = [self._lookup(tuple(shape), gradients=False) for shape in shapes]
        pace, devices = self.pace, self.choices.devices
        table = forward_timetable(self.choices.schedule, devices=devices, micro_batches=len(shapes), pace=pace)
        transport = self._transport(table, placed)
        final = max(stage for stage, place in enumerate(self.places) if place == self.mesh.place)
        for number, (_, stage, m) in enumerate(transport.order):
            transport.begin(number)
            flight = self._flight(stage, m, placed[m], seed=m, x=load(m) if stage == 0 else None)
            output = self._passes.run(flight, transport=transport)
            del flight
            if stage == final:
                yield output if self.has_output else None
            del output
        transport.flush()

    def region(self, shape: Shape) -> tuple[slice, ...]:
        """The part of a volume that this process loads: all of it, or its slab."""
        return tuple(slice(0, size) for size in shape[2:]) if self._cutting is None else self._cutting.region(shape)

    def placed(self, mine: Tensor, shape: Shape) -> Tensor:
        """What was loaded, as the network or the loss takes it."""
        return mine if self._cutting is None else self._cutting.placed(mine, shape)

    def scatter(self, whole: Tensor | None, shape: Shape, *, dtype: torch.dtype) -> Tensor:
        """My part of the input that the first device has, on my device; called where the first stage lies."""
        device = self.mesh.world.device
        if self._cutting is not None:
            return self._cutting.scatter(whole, shape, dtype=dtype)
        return torch.zeros(shape, dtype=dtype, device=device) if whole is None else whole.to(device, dtype)

    def parts(
        self, shapes: Sequence[Shape], *, load: Callable[[int], Tensor], logits: Callable[[Any], Tensor]
    ) -> Iterator[Tensor | None]:
        """The logits (N, C, *part) of my part of each input where the output is; elsewhere None.

        Args:
            logits: those among what the network returns.
        """
        for output in self.predict(shapes, load=load):
            mine = None if output is None else logits(output)
            del output
            yield mine if mine is None or self._cutting is None else self._cutting.checked(mine)
            del mine

    def check(self, shape: Shape) -> None:
        """Raises UserError if the network can't take such an input; on every rank of the replica alike."""
        self._lookup(tuple(shape), gradients=False)

    def labels(
        self, shapes: Sequence[Shape], *, load: Callable[[int], Tensor], logits: Callable[[Any], Tensor]
    ) -> Iterator[Tensor | None]:
        """Class indices (X, Y, Z) of each volume, on one rank; elsewhere None. Arguments as of `parts`."""
        for shape, found in zip(shapes, self.parts(shapes, load=load, logits=logits), strict=True):
            if found is None:
                yield None
            else:
                yield found[0].argmax(0) if self._cutting is None else self._cutting.labels(found, shape)

    def _flight(
        self, stage: int, m: int, placed: tuple[Placement, tuple[Routes, ...]], *, seed: int, x: Tensor | None
    ) -> Flight:
        placement, routes = placed
        return Flight(stage, m, placement, routes[stage], seed, x=x)

    def _timetable(self, count: int) -> Timetable:
        choices = self.choices
        return timetable(
            choices.schedule, devices=choices.devices, micro_batches=count, pace=self.pace, limit=choices.limit
        )

    def _transport(self, table: Timetable, placed: Sequence[tuple[Placement, tuple[Routes, ...]]]) -> Transport:
        routes = [routes for _, routes in placed]
        itinerary = Itinerary(table, device=self.mesh.place, places=self.places, routes=routes)
        lasting = {storage_of(buffer) for buffer in self.network.buffers() if not buffer.is_meta}
        return Transport(self.mesh, itinerary, lasting=lambda tensor: storage_of(tensor) in lasting)

    def _lookup(self, shape: Shape, *, gradients: bool = True) -> tuple[Placement, tuple[Routes, ...]]:
        """The placement and every stage's routes for a shape in the network's present mode; recorded on first use."""
        modes = tuple(module.training for module in self.network.modules())
        trained = tuple(parameter.requires_grad for parameter in self.network.parameters())
        key = (shape, modes, trained, gradients)
        if key not in self._placements:
            kind = self.mesh.world.device.type
            around = None if self._slabs is None else self._slabs.around(shape)
            graph = record_for(
                self.network,
                shape=shape,
                precision=self.precision,
                device=kind,
                gradients=gradients,
                around=around,
            )
            placement = transfer(self._planned, graph)
            # Those who have the same slab exchange values; all run the same operations.
            told: Any = set(self.mesh.gather((self.mesh.slab, graph.signature, placement.cuts)))
            if len(told) > self.mesh.sharing or len({cuts for *_, cuts in told}) > 1:
                raise GraphMismatchError(
                    f"the network's forward pass differs between ranks for an input of shape {shape}: build it alike "
                    "everywhere; it must not depend on the process (hash order, rank, environment)"
                )
            routes = tuple(routes_of(placement, stage) for stage in range(placement.stages))
            self._placements[key] = placement, routes
        return self._placements[key]


def places_of(choices: Choices) -> tuple[int, ...]:
    """The device of each stage."""
    count, devices = choices.stages, choices.devices
    return tuple(device_of(choices.schedule, s, stages=count, devices=devices) for s in range(count))

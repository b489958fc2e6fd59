"""The rehearsal: a plan's passes run on fake tensors, so that each device's peak memory is known to the byte.

Every stage runs one forward and one backward with the very code that will train (`pipeline.passes`), under a mode that
counts the bytes alive; nothing is computed or allocated. From these, a walk through the timetable gives each device's
peak: what is in flight, what is on its way to and from other devices, and what the pass that runs needs on top.
"""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from lampseg.parallel.fake_state import FakeState, fake_state
from lampseg.parallel.pipeline.flight import Flight
from lampseg.parallel.pipeline.itinerary import Itinerary
from lampseg.parallel.pipeline.passes import Passes
from lampseg.parallel.pipeline.routes import Route, Routes, routes_of
from lampseg.parallel.pipeline.runner import places_of
from lampseg.parallel.pipeline.transport import AHEAD, Delivery
from lampseg.parallel.spatial.around import AroundSlab, StageSlabs
from lampseg.parallel.state import owners_of
from lampseg.partition.costed import CostedNetwork, MicroBatchLoss
from lampseg.partition.placement import Placement, place
from lampseg.partition.plan import DeviceLoad, Plan
from lampseg.partition.schedule import Action
from lampseg.recording.backward import EmptyLoss
from lampseg.recording.graph import Value, ValueId
from lampseg.recording.live import LiveBytes


@dataclass(frozen=True)
class PassBytes:
    """What one micro-batch's passes through one stage take, in bytes."""

    forward_peak: int
    """Above what was alive before; with the buffers that it receives into."""
    kept: int
    """Alive between forward and backward."""
    backward_peak: int
    """Above what was kept."""
    gradients: int
    """Left of the backward: gradients of parameters that had none."""
    sent: dict[Route, int]
    """Held for a value that was sent, beside what is kept."""
    returned: dict[Route, int]
    """The same for gradients."""


def rehearse(model: CostedNetwork, plan: Plan, loss: MicroBatchLoss | None = None) -> tuple[DeviceLoad, ...]:
    """The loads of a plan's devices, with the exact peak of the tensors.

    Args:
        model: the network that the plan is for; in the mode that it trains in.
        loss: of a micro-batch; None: one that takes no memory.
    """
    placement = place(model.graph, plan.cuts)
    first_only = plan.choices.share == 1
    passes: dict[tuple[int, bool], PassBytes] = {}
    with fake_state(model.network) as fake:
        for stage, recompute in enumerate(plan.choices.recompute):
            ways = {"none": (False,), "all": (True,), "all_but_last": (False, True)}[recompute]
            for again in ways:
                run = _Run(model, placement, stage, fake=fake, loss=loss, fresh=first_only, local=_local(plan, stage))
                passes[stage, again] = run.measure(again=again)
    routes = [routes_of(placement, stage) for stage in range(placement.stages)]
    trained = _trained(model, placement)
    return tuple(
        _walk(plan, load, passes, routes, trained, cuda=model.graph.input.device.type == "cuda")
        for load in plan.devices
    )


def _trained(model: CostedNetwork, placement: Placement) -> dict[int, list[int]]:
    """Bytes of each trained parameter, by stage."""
    owners = owners_of(model.network, placement)
    sizes: dict[int, list[int]] = {}
    for name, parameter in model.network.named_parameters():
        if parameter.requires_grad:
            sizes.setdefault(owners[name], []).append(parameter.numel() * parameter.element_size())
    return sizes


def _local(plan: Plan, stage: int) -> frozenset[int]:
    """The stages that lie on the same device."""
    places = places_of(plan.choices)
    return frozenset(other for other, place in enumerate(places) if place == places[stage])


def _walk(
    plan: Plan,
    load: DeviceLoad,
    passes: dict[tuple[int, bool], PassBytes],
    routes: list[Routes],
    trained: dict[int, list[int]],
    *,
    cuda: bool,
) -> DeviceLoad:
    """Goes through a device's actions and finds the moment of its peak.

    Args:
        trained: bytes of the trained parameters of each stage.
    """
    table, count = plan.timetable(), plan.choices.share
    itinerary = Itinerary(table, device=load.index, places=places_of(plan.choices), routes=[routes] * count)
    state = load.parameter_bytes + load.optimizer_bytes
    # Passes of a single micro-batch make the gradients; of several, a stage's first backward does.
    without = {stage for stage in trained if count > 1}
    kept, pending = 0, list[tuple[int, int]]()
    # The optimizer's step comes when all gradients are there and nothing else is. RMSprop makes a root of the numbers
    # it keeps: PyTorch does so for one parameter after the other, on CUDA for all at once.
    mine = [n for stage, sizes in trained.items() if itinerary.places[stage] == load.index for n in sizes]
    roots = (sum(mine) if cuda else max(mine)) if mine else 0
    best = (state + load.gradient_bytes + roots, 0, 0)
    for number, action in enumerate(itinerary.order):
        pending = [item for item in pending if item[0] > number]
        taken = passes[action.stage, plan.choices.runs_again(action.stage, action.micro_batch, count)]
        following = itinerary.order[number + 1 : number + 1 + AHEAD]
        arriving = sum(
            route.value.nbytes
            for other in following
            for route in routes[other.stage].arriving(other.kind)
            if itinerary.places[route.sender(other.kind)] != load.index
        )
        boundary = arriving + sum(nbytes for _, nbytes in pending)
        forward = action.kind == "forward"
        if not forward and action.stage in without:
            without.remove(action.stage)
            state += sum(trained[action.stage])
        peak = state + kept + boundary + (taken.forward_peak if forward else taken.backward_peak)
        best = max(best, (peak, kept, boundary))
        for route, nbytes in (taken.sent if forward else taken.returned).items():
            receiving = Action(action.kind, route.receiver(action.kind), action.micro_batch)
            if itinerary.places[receiving.stage] == load.index:  # handed over: until the receiver's backward is done
                receiving = Action("backward", receiving.stage, action.micro_batch)
            pending.append((itinerary.may_wait(receiving), nbytes))
        kept += taken.kept if forward else taken.gradients - taken.kept
    peak, kept, boundary = best
    rest = peak - load.parameter_bytes - load.optimizer_bytes - kept - boundary
    gradients = min(load.gradient_bytes, rest)
    return replace(
        load,
        gradient_bytes=gradients,
        activation_bytes=kept,
        boundary_bytes=boundary,
        temporary_bytes=rest - gradients,
        peak_bytes=peak + load.library_bytes,
    )


class _Run:
    """One stage's passes on fake tensors."""

    def __init__(
        self,
        model: CostedNetwork,
        placement: Placement,
        stage: int,
        *,
        fake: FakeState,
        loss: MicroBatchLoss | None,
        fresh: bool,
        local: frozenset[int],
    ) -> None:
        self.model, self.placement, self.stage = model, placement, stage
        self.fake, self.loss, self.fresh, self.local = fake, loss, fresh, local
        self.routes = routes_of(placement, stage)
        assert model.around is None or isinstance(model.around, AroundSlab)
        self.around = model.around
        self.live = LiveBytes()

    def measure(self, *, again: bool) -> PassBytes:
        graph, live = self.model.graph, self.live
        self.fake.hold(self.placement, self.stage, gradients=not self.fresh)
        with self.fake.mode, torch.enable_grad():
            passes = Passes(
                self.model.network,
                device=graph.input.device,
                last=self.placement.stages - 1,
                precision=self.model.precision,
                slabs=None if self.around is None else StageSlabs(self.around.spatial),
            )
            post = _Post(self, "forward")
            with live, torch.autograd.set_multithreading_enabled(False):  # modes are of one thread
                start = live.current
                post.fill(counted=True)
                x = _empty(graph.input) if self.stage == 0 else None
                flight = Flight(self.stage, 0, self.placement, self.routes, 0, x=x)
                del x
                if again:
                    passes.forward_without_graph(flight, transport=cast(Any, post))
                else:
                    passes.forward(flight, transport=cast(Any, post), loss=self._loss)
                forward_peak = live.peak - start
                sent = post.let_go()
                kept = live.current - start
            back = _Post(self, "backward")
            with live, torch.autograd.set_multithreading_enabled(False):
                live.reset_peak()
                back.fill(counted=True)
                if again:
                    passes.forward(flight, transport=None, loss=self._loss)
                passes.backward(flight, cast(Any, back))
                del flight
                backward_peak = live.peak - start - kept
                returned = back.let_go()
                gradients = live.current - start
        return PassBytes(forward_peak, kept, backward_peak, gradients, sent, returned)

    def _loss(self, output: Any) -> Tensor:
        shape = self.model.graph.input.shape
        if self.loss is None:
            with torch._C.DisableTorchFunction():
                return EmptyLoss.of(output)
        return self.loss(output, shape) if self.around is None else self.loss(output, shape, self.around.placed)


class _Post:
    """Stands for the transport: what a pass receives is there, what it sends is held until `let_go`."""

    def __init__(self, run: _Run, kind: str) -> None:
        self.run, self.kind = run, kind
        self.arrivals: dict[ValueId, list[Delivery]] = {}
        self.held: list[tuple[Route, Tensor]] = []
        self.fill(counted=False)

    def fill(self, *, counted: bool) -> None:
        """Makes what arrives by message (counted as this device's buffers) or from hand to hand (the maker's)."""
        for route in self.run.routes.arriving(cast(Any, self.kind)):
            mine = route.sender(cast(Any, self.kind)) in self.run.local
            if mine != counted:
                work = None if mine else cast(Any, self)
                self.arrivals.setdefault(route.value.id, []).append(Delivery(_empty(route.value), work=work))

    def take(self, action: Action, value: ValueId) -> list[Delivery]:
        return self.arrivals.pop(value)

    def take_rest(self, action: Action) -> None:
        self.arrivals.clear()

    def send(self, action: Action, route: Route, tensor: Tensor | None) -> None:
        mine = route.receiver(action.kind) in self.run.local
        if tensor is not None:
            data = tensor.detach()
            self.held.append((route, data if mine else data.contiguous()))
        elif not mine:
            self.held.append((route, _empty(route.value)))

    def let_go(self) -> dict[Route, int]:
        """How many bytes were held for each route alone."""
        found: dict[Route, int] = {}
        while self.held:
            before = self.run.live.current
            route = self.held.pop()[0]
            found[route] = before - self.run.live.current
        return found


def _empty(value: Value) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device=value.device)

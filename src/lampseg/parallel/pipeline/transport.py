"""Transport: values and gradients between stages, by message to another device, from hand to hand within one."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from lampseg.parallel.mesh import Mesh
from lampseg.parallel.pipeline.itinerary import Channel, Itinerary
from lampseg.parallel.pipeline.routes import Route
from lampseg.parallel.world import Kind
from lampseg.partition.schedule import Action
from lampseg.recording.graph import ValueId

AHEAD = 1
"""How many actions ahead receives are posted, so that what comes next arrives while this one computes."""


class Delivery:
    """A value or gradient that is there, or on its way."""

    def __init__(self, data: Tensor | None, *, work: dist.Work | None = None) -> None:
        self.data, self.work = data, work

    @property
    def shared(self) -> bool:
        """Whether the memory is not mine alone: it was handed over within the device."""
        return self.work is None


class Transport:
    """What one device sends and receives in one step.

    A received message lies in a buffer that is allocated when its receive is posted: `AHEAD` actions before it is
    read, or earlier if it comes before a message that is. Within a device the tensor itself is handed over, not a copy.

    Args:
        lasting: whether a tensor's memory will be written again after it was sent, as a buffer's is.
    """

    def __init__(self, mesh: Mesh, itinerary: Itinerary, *, lasting: Callable[[Tensor], bool]) -> None:
        self._mesh, self._itinerary, self._lasting = mesh, itinerary, lasting
        self._posted: dict[Channel, int] = dict.fromkeys(itinerary.inbound, 0)
        self._arrivals: dict[Action, dict[Route, Delivery]] = {}
        self.order = itinerary.order
        self._pending: list[tuple[int, Tensor, dist.Work]] = []
        self.waited = 0.0
        """Seconds spent waiting so far (on CUDA the device waits, not this process)."""

    def begin(self, number: int) -> None:
        """Before my action of that number: lets go of what has been received, and posts what will be needed."""
        self._finish([item for item in self._pending if item[0] <= number])
        for action in self._itinerary.order[number : number + 1 + AHEAD]:
            for channel, count in self._itinerary.needed(action).items():
                while self._posted[channel] < count:
                    self._post(channel)

    def _post(self, channel: Channel) -> None:
        kind, peer = channel
        action, route = self._itinerary.inbound[channel][self._posted[channel]]
        self._posted[channel] += 1
        at = route.value.device if route.value.device.type == "cpu" else self._mesh.world.device
        buffer = torch.empty(route.value.shape, dtype=route.value.dtype, device=at)
        source = self._mesh.peer(peer)
        work = dist.irecv(buffer, source, group=self._group(kind, source, self._mesh.world.rank))
        assert work is not None
        self._arrivals.setdefault(action, {})[route] = Delivery(buffer, work=work)

    def _group(self, kind: Kind, source: int, target: int) -> dist.ProcessGroup:
        return self._mesh.world.channels.group(kind, source=source, target=target)

    def take(self, action: Action, value: ValueId) -> list[Delivery]:
        """What an action receives of a value: itself, or its gradient from every stage that read it. Waits for it."""
        arrivals = self._arrivals[action]
        routes = [r for r in self._itinerary.routes(action).arriving(action.kind) if r.value.id == value]
        taken = [arrivals.pop(route) for route in routes]
        begun = time.perf_counter()
        for delivery in taken:
            if delivery.work is not None:
                delivery.work.wait()
        self.waited += time.perf_counter() - begun
        return taken

    def take_rest(self, action: Action) -> None:
        """Waits for what an action receives and has not read, so that no message is left over."""
        for value in dict.fromkeys(route.value.id for route in self._arrivals.get(action, {})):
            self.take(action, value)
        self._arrivals.pop(action, None)

    def send(self, action: Action, route: Route, tensor: Tensor | None) -> None:
        """Sends what an action made; None is a gradient that there is not, as a message it is zeros."""
        stage = route.receiver(action.kind)
        receiving = Action(action.kind, stage, action.micro_batch)
        place = self._itinerary.places[stage]
        data = None if tensor is None else tensor.detach()
        if data is not None and self._lasting(data):
            data = data.clone()  # the next micro-batch changes it before this one has been read
        if place == self._itinerary.device:
            self._arrivals.setdefault(receiving, {})[route] = Delivery(data)
            return
        if data is None:
            data = torch.zeros(route.value.shape, dtype=route.value.dtype, device=self._mesh.world.device)
        data = data.contiguous()
        rank = self._mesh.peer(place)
        work = dist.isend(data, rank, group=self._group(action.kind, self._mesh.world.rank, rank))
        assert work is not None
        self._pending.append((self._itinerary.may_wait(receiving), data, work))

    def flush(self) -> None:
        """Waits until all sends are done."""
        assert not any(self._arrivals.values()), "what arrived was not taken"
        self._finish(list(self._pending))

    def _finish(self, items: list[tuple[int, Tensor, dist.Work]]) -> None:
        begun = time.perf_counter()
        for item in items:
            item[2].wait()
        done = {id(item) for item in items}
        self._pending = [item for item in self._pending if id(item) not in done]
        self.waited += time.perf_counter() - begun

"""Transport: posted receives and pending sends of one stage, and the time spent waiting for them."""

import time
from collections import deque
from collections.abc import Hashable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lampseg.parallel.pipeline.routes import Route


class Transport:
    """Point-to-point messages over one process group, matched by their order between two ranks.

    Receives are posted by key (an action of the schedule) before they are needed. A send keeps its tensor alive until
    it is done; at most `depth` batches of sends are pending, so memory does not grow with the number of micro-batches.
    """

    def __init__(self, group: dist.ProcessGroup, *, device: torch.device, depth: int) -> None:
        self._group, self._device, self._depth = group, device, depth
        self._posted: dict[Hashable, dict[tuple[int, ...], list[tuple[Tensor, dist.Work]]]] = {}
        self._pending: deque[list[tuple[Tensor, dist.Work]]] = deque()
        self.waited = 0.0
        """Seconds spent waiting so far (on CUDA the device waits, not this process)."""

    def post(self, key: Hashable, routes: Sequence[Route], *, peer: str) -> None:
        """Posts the receives of `routes`, in order; `peer` says which end of the route sends. Once per key."""
        if key in self._posted:
            return
        arrivals: dict[tuple[int, ...], list[tuple[Tensor, dist.Work]]] = {}
        for route in routes:
            at = route.value.device if route.value.device.type == "cpu" else self._device
            buffer = torch.empty(route.value.shape, dtype=route.value.dtype, device=at)
            work = dist.irecv(buffer, getattr(route, peer), group=self._group)
            assert work is not None
            arrivals.setdefault(route.value.id, []).append((buffer, work))
        self._posted[key] = arrivals

    def take(self, key: Hashable, value: tuple[int, ...]) -> list[Tensor]:
        """The arrived tensors of a value, one for each route that was posted; waits for them."""
        arrivals = self._posted[key].pop(value)
        begun = time.perf_counter()
        for _, work in arrivals:
            work.wait()
        self.waited += time.perf_counter() - begun
        return [buffer for buffer, _ in arrivals]

    def take_rest(self, key: Hashable) -> None:
        """Waits for what was posted under a key and not read, so that no message is left over."""
        for value in list(self._posted[key]):
            self.take(key, value)
        del self._posted[key]

    def send(self, tensor: Tensor, rank: int) -> None:
        """Sends a tensor; it belongs to the batch of the last `next_batch`."""
        data = tensor.detach().contiguous()
        work = dist.isend(data, rank, group=self._group)
        assert work is not None
        self._pending[-1].append((data, work))

    def next_batch(self) -> None:
        """Begins a batch of sends, after the oldest beyond `depth` is done."""
        while len(self._pending) > self._depth:
            self._finish_oldest()
        self._pending.append([])

    def flush(self) -> None:
        """Waits until all sends are done."""
        assert not any(self._posted.values()), "a posted message was not taken"
        while self._pending:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        begun = time.perf_counter()
        for _, work in self._pending.popleft():
            work.wait()
        self.waited += time.perf_counter() - begun

"""Devices as threads of one process: the runner itself, over queues instead of gloo, to try many cuts in little time.

The queues are as strict as NCCL: there are no tags, the messages of one group between two ranks are matched in order,
a send is only done when it has been received, and its memory is read no earlier than that. One thread computes at a
time (the baton), so that torch's one default generator is not shared by two at once.
"""

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from lampseg.parallel.mesh import Mesh
from lampseg.parallel.pipeline import transport
from lampseg.parallel.world import Channels, World

PATIENCE = 60.0
"""Seconds without any progress after which a device gives up waiting."""

Messages = dict[tuple[str, int, int], list[Tensor]]
"""Copies of what was sent, in order, by (forward or backward, source, target)."""


class Deadlock(AssertionError):
    """Every device waits for another."""


@dataclass
class _Line:
    """The messages of one group from one rank to another."""

    sent: int = 0
    posted: int = 0
    done: int = 0
    leaving: deque[Tensor] = field(default_factory=deque)
    arriving: deque[Tensor] = field(default_factory=deque)
    copies: list[Tensor] | None = None

    def match(self) -> None:
        while self.leaving and self.arriving:
            tensor, buffer = self.leaving.popleft(), self.arriving.popleft()
            assert (tensor.shape, tensor.dtype) == (buffer.shape, buffer.dtype), f"{tensor.shape} for {buffer.shape}"
            buffer.copy_(tensor)
            self.done += 1
            if self.copies is not None:
                self.copies.append(buffer.clone())


@dataclass
class _Post:
    """What all devices share."""

    size: int
    messages: Messages | None
    lines: dict[tuple[str, int, int], _Line] = field(default_factory=dict)
    items: dict[int, list[Any]] = field(default_factory=dict)
    baton: threading.Condition = field(default_factory=threading.Condition)
    failed: list[BaseException] = field(default_factory=list)
    rank: threading.local = field(default_factory=threading.local)
    waiting: dict[int, tuple[Callable[[], bool], str]] = field(default_factory=dict)
    """What each rank waits for that waits; one that has ended waits for nothing any more."""

    def line(self, key: tuple[str, int, int]) -> _Line:
        if key not in self.lines:
            self.lines[key] = _Line(copies=None if self.messages is None else self.messages.setdefault(key, []))
        return self.lines[key]

    def wait_for(self, arrived: Callable[[], bool], what: str) -> None:
        rank = self.rank.number
        self.waiting[rank] = (arrived, what)
        self.check()
        ready = self.baton.wait_for(lambda: bool(self.failed) or arrived(), timeout=PATIENCE)
        del self.waiting[rank]
        if self.failed:
            raise ConnectionError("another device failed")
        assert ready, f"rank {rank} waits in vain for {what}"

    def ended(self) -> None:
        self.waiting[self.rank.number] = (lambda: False, "nothing")
        self.check()

    def check(self) -> None:
        """Raises Deadlock if nobody can go on."""
        stuck = {rank: what for rank, (arrived, what) in self.waiting.items() if not arrived()}
        if len(stuck) == self.size and any(what != "nothing" for what in stuck.values()) and not self.failed:
            raise Deadlock(f"all wait in vain: {stuck}")


class ThreadWorld(World):
    """A world whose other ranks are threads."""

    post: _Post
    rounds: int

    def gather(self, item: object) -> list[object]:
        items = self.post.items.setdefault(self.rounds, [])
        object.__setattr__(self, "rounds", self.rounds + 1)
        items.append((self.rank, item))
        self.post.baton.notify_all()
        self.post.wait_for(lambda: len(items) == self.size, "a gather")
        return [found for _, found in sorted(items, key=lambda pair: cast(int, pair[0]))]


@contextmanager
def _queues_for_gloo(post: _Post) -> Iterator[None]:
    def isend(tensor: Tensor, target: int, *, group: str) -> Any:
        key = (group, post.rank.number, target)
        line = post.line(key)
        line.sent += 1
        line.leaving.append(tensor)
        return promise(line, line.sent, f"send {line.sent} of {key} to be received")

    def irecv(buffer: Tensor, source: int, *, group: str) -> Any:
        key = (group, source, post.rank.number)
        line = post.line(key)
        line.posted += 1
        line.arriving.append(buffer)
        return promise(line, line.posted, f"message {line.posted} of {key}")

    def promise(line: _Line, number: int, what: str) -> Any:
        line.match()
        post.baton.notify_all()
        return SimpleNamespace(wait=lambda: post.wait_for(lambda: line.done >= number, what))

    real = transport.dist
    transport.dist = SimpleNamespace(isend=isend, irecv=irecv, Work=object)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        transport.dist = real  # type: ignore[attr-defined]


def run_threads(function: Callable[..., Any], size: int, *args: Any, messages: Messages | None = None) -> list[Any]:
    """Calls `function(mesh, *args)` on `size` threads (args are copied) and returns the results in rank order.

    The mesh is one replica of `size` devices. What they sent to each other is noted in `messages`.
    """
    post = _Post(size, messages)
    results: list[Any] = [None] * size
    channels = Channels(*cast(Any, ("forward", "forward", "backward", "backward")))

    def work(rank: int) -> None:
        post.rank.number = rank
        world = ThreadWorld(rank, size, torch.device("cpu"), channels, cast(Any, "control"))
        object.__setattr__(world, "post", post)
        object.__setattr__(world, "rounds", 0)
        with post.baton:
            try:
                results[rank] = function(Mesh(world, 1, size), *copy.deepcopy(args))
                post.ended()
            except BaseException as error:  # noqa: BLE001 (raised again below, in the caller's thread)
                post.failed.append(error)
                post.baton.notify_all()

    with _queues_for_gloo(post):
        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if post.failed:
        raise post.failed[0]
    unmatched = {key: line for key, line in post.lines.items() if not line.sent == line.posted == line.done}
    assert not unmatched, f"messages without an end: {unmatched}"
    return results

"""Stages as threads of one process: the runner itself, over queues instead of gloo, to try many cuts in little time.

One thread computes at a time (the baton), so that torch's one default generator is not shared by two at once.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from lampseg.parallel.pipeline import transport
from lampseg.parallel.world import World

PATIENCE = 60.0
"""Seconds without any progress after which a stage gives up waiting: the stages' messages do not match."""


Messages = dict[tuple[str, int, int], list[Tensor]]
"""What was sent, in order, by (forward or backward, source, target)."""


@dataclass
class _Post:
    """What all stages share."""

    sent: Messages = field(default_factory=dict)
    posted: dict[tuple[str, int, int], int] = field(default_factory=dict)
    items: dict[int, list[Any]] = field(default_factory=dict)
    baton: threading.Condition = field(default_factory=threading.Condition)
    failed: list[BaseException] = field(default_factory=list)
    rank: threading.local = field(default_factory=threading.local)

    def wait_for(self, arrived: Callable[[], bool], what: str) -> None:
        ready = self.baton.wait_for(lambda: bool(self.failed) or arrived(), timeout=PATIENCE)
        if self.failed:
            raise ConnectionError("another stage failed")
        assert ready, f"rank {self.rank.number} waits in vain for {what}"


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
        post.sent.setdefault((group, post.rank.number, target), []).append(tensor.clone())
        post.baton.notify_all()
        return SimpleNamespace(wait=lambda: None)

    def irecv(buffer: Tensor, source: int, *, group: str) -> Any:
        key = (group, source, post.rank.number)
        number = post.posted.get(key, 0)
        post.posted[key] = number + 1

        def wait() -> None:
            queue = post.sent.setdefault(key, [])
            post.wait_for(lambda: len(queue) > number, f"message {number} of {key}")
            assert queue[number].shape == buffer.shape, f"{key}: {queue[number].shape} came for {buffer.shape}"
            assert queue[number].dtype == buffer.dtype, f"{key}: {queue[number].dtype} came for {buffer.dtype}"
            buffer.copy_(queue[number])

        return SimpleNamespace(wait=wait)

    real = transport.dist
    transport.dist = SimpleNamespace(isend=isend, irecv=irecv, Work=object)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        transport.dist = real  # type: ignore[attr-defined]


def run_threads(function: Callable[..., Any], size: int, *args: Any, messages: Messages | None = None) -> list[Any]:
    """Calls `function(world, *args)` on `size` threads (args are copied) and returns the results in rank order.

    What the stages sent to each other is noted in `messages`.
    """
    post = _Post()
    if messages is not None:
        post.sent = messages
    results: list[Any] = [None] * size

    def work(rank: int) -> None:
        post.rank.number = rank
        world = ThreadWorld(rank, size, torch.device("cpu"), *cast(Any, ("forward", "backward", "control")))
        object.__setattr__(world, "post", post)
        object.__setattr__(world, "rounds", 0)
        with post.baton:
            try:
                results[rank] = function(world, *copy.deepcopy(args))
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
    unread = {key: len(queue) - post.posted.get(key, 0) for key, queue in post.sent.items()}
    assert not any(unread.values()), f"messages that nobody took: {unread}"
    return results

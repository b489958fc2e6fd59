"""The processes of a run: who I am, on which device I compute, and the groups through which we talk."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist

from lampseg.denormals import denormals
from lampseg.host_allocator import freed_memory_kept
from lampseg.parallel.devices import parse_devices

Kind = Literal["forward", "backward"]
"""Of messages: values travel forward, gradients backward."""


@dataclass(frozen=True)
class Channels:
    """Process groups for messages between two ranks, one for each kind and direction.

    NCCL has no tags: it executes the messages of one group between two ranks in order, so that one which waits for
    its receiver holds back those behind it. A gradient must not hold back values. And with several stages on a device
    values travel both ways: what I send must not hold back what I am sent.
    """

    values_up: dist.ProcessGroup
    """Values that go to a higher rank."""
    values_down: dist.ProcessGroup
    gradients_up: dist.ProcessGroup
    gradients_down: dist.ProcessGroup

    @staticmethod
    def create(new_group: Callable[[], dist.ProcessGroup]) -> "Channels":
        """Makes the groups; every rank does, in the same order."""
        return Channels(new_group(), new_group(), new_group(), new_group())

    def group(self, kind: Kind, *, source: int, target: int) -> dist.ProcessGroup:
        """That of the messages of a kind from one rank to another."""
        if kind == "forward":
            return self.values_up if source < target else self.values_down
        return self.gradients_up if source < target else self.gradients_down


@dataclass(frozen=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device
    channels: Channels
    control: dist.ProcessGroup
    """Small objects on the CPU: losses, checksums, checkpoints."""
    timeout: timedelta = timedelta(minutes=30)
    """After which waiting for a silent peer is an error."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    def gather(self, item: object) -> list[object]:
        """Everyone's item, in rank order, on every rank."""
        items: list[object] = [None] * self.size
        dist.all_gather_object(items, item, group=self.control)
        return items

    def broadcast(self, item: object, *, source: int = 0) -> object:
        """The item of rank `source`, on every rank."""
        items = [item]
        dist.broadcast_object_list(items, src=source, group=self.control)
        return items[0]


def join(*, device: str, timeout: float) -> World:
    """Joins the process group that the environment describes (as torchrun sets it), or a group of one.

    Args:
        device: cpu or cuda; on CUDA each process takes the GPU of its local rank.
        timeout: seconds after which waiting for a silent peer is an error.
    """
    limit = timedelta(seconds=timeout)
    if device == "cuda":
        local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(local)
        backend = "cpu:gloo,cuda:nccl"
    else:
        local, backend = torch.device("cpu"), "gloo"
    if "RANK" in os.environ:
        dist.init_process_group(backend, timeout=limit)
    else:
        dist.init_process_group(
            backend,
            store=dist.HashStore(),  # type: ignore[attr-defined]
            rank=0,
            world_size=1,
            timeout=limit,
        )
    return World(
        rank=dist.get_rank(),
        size=dist.get_world_size(),
        device=local,
        channels=Channels.create(lambda: dist.new_group(timeout=limit)),
        control=dist.new_group(backend="gloo", timeout=limit),
        timeout=limit,
    )


@contextlib.contextmanager
def membership(*, device: str, timeout: float) -> Iterator[World]:
    """Joins, and leaves at the end.

    After an error a process on its own leaves, too, so that its caller may try again. One of several does not: it
    could wait for its peers, and it is about to end.
    """
    with denormals(flushed=device == "cpu"), freed_memory_kept(wanted=device == "cpu"):
        world = join(device=device, timeout=timeout)
        try:
            yield world
        except BaseException:
            if world.size == 1:
                leave()
            raise
        leave()


def keep_to_stated_memory(stated: int | str | None, *, world: World) -> None:
    """Lets this process's GPU give no more memory than `--devices NxMEMORY` stated."""
    memory = parse_devices(stated, planning=True).memory
    if world.device.type != "cuda" or memory is None:
        return
    total = torch.cuda.get_device_properties(world.device).total_memory
    limit = memory[world.rank % len(memory)]
    if limit < total:
        torch.cuda.set_per_process_memory_fraction(limit / total, world.device)


def leave() -> None:
    """Ends the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()

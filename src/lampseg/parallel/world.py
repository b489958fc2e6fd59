"""The processes of a run: who I am, on which device I compute, and the groups through which we talk."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process among the others.

    Values and gradients travel through separate groups: NCCL executes the messages of one group in order, so a
    gradient that waits for its receiver would hold back the activations behind it.
    """

    rank: int
    size: int
    device: torch.device
    forward: dist.ProcessGroup
    backward: dist.ProcessGroup
    control: dist.ProcessGroup
    """Small objects on the CPU: losses, checksums, checkpoints."""

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def last(self) -> bool:
        return self.rank == self.size - 1

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
        # A confident softmax has gradients below 1e-38. Denormal numbers make a convolution 100 times slower.
        torch.set_flush_denormal(True)
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
        forward=dist.new_group(timeout=limit),
        backward=dist.new_group(timeout=limit),
        control=dist.new_group(backend="gloo", timeout=limit),
    )


@contextlib.contextmanager
def membership(*, device: str, timeout: float) -> Iterator[World]:
    """Joins, and leaves at the end.

    After an error a process on its own leaves, too, so that its caller may try again. One of several does not: it
    could wait for its peers, and it is about to end.
    """
    world = join(device=device, timeout=timeout)
    try:
        yield world
    except BaseException:
        if world.size == 1:
            leave()
        raise
    leave()


def leave() -> None:
    """Ends the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()

"""Times messages between the processes of a run: latency and bandwidth from one to another, and of sums over all."""

import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist

from lampseg.hardware.device import Link
from lampseg.parallel.world import World

SIZES = (1 << 10, 1 << 14, 1 << 18, 1 << 22, 1 << 25)
"""Bytes of the messages that are timed."""


def measure_link(world: World, *, quick: bool = False) -> Link:
    """The link of this process, while the others use theirs: neighbours send to and fro, then all sum.

    Returns:
        The same value on every rank: the slowest of all.

    Raises:
        AssertionError: there is only one process.
    """
    assert world.size > 1, "one process sends no messages"
    sizes = SIZES[:3] if quick else SIZES
    messages = [_agreed(world, _ping_pong(world, size, quick=quick)) for size in sizes]
    sums = [_agreed(world, _all_reduce(world, size, quick=quick)) for size in sizes]
    rounds = 2 * (world.size - 1)
    latency, bandwidth = fit_line(sizes, messages)
    # A round of the ring sends size / ranks bytes.
    reduce_latency, reduce_bandwidth = fit_line([size / world.size for size in sizes], [s / rounds for s in sums])
    return Link(latency, bandwidth, reduce_latency, reduce_bandwidth)


def fit_line(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """(latency, bytes per second) of seconds = latency + size / bandwidth, by least squares of relative errors.

    Neither comes out below 0, whatever the clock said.
    """
    weights = [1 / second**2 for second in seconds]
    total = sum(weights)
    mean_size = sum(w * x for w, x in zip(weights, sizes)) / total
    mean_seconds = sum(w * y for w, y in zip(weights, seconds)) / total
    covariance = sum(w * (x - mean_size) * (y - mean_seconds) for w, x, y in zip(weights, sizes, seconds))
    slope = covariance / sum(w * (x - mean_size) ** 2 for w, x in zip(weights, sizes))
    slope = max(slope, 1e-3 * seconds[-1] / sizes[-1])
    return min(max(mean_seconds - slope * mean_size, 0.0), min(seconds)), 1 / slope


def _ping_pong(world: World, size: int, *, quick: bool) -> float | None:
    """Seconds of one message; None for a rank without a partner."""
    partner = world.rank ^ 1
    there = torch.zeros(size // 4, device=world.device)
    if partner >= world.size:
        _repeat(world, lambda: None, quick=quick)
        return None

    def exchange() -> None:
        sending = world.channels.group("forward", source=world.rank, target=partner)
        receiving = world.channels.group("forward", source=partner, target=world.rank)
        if world.rank < partner:
            dist.send(there, partner, group=sending)
            dist.recv(there, partner, group=receiving)
        else:
            dist.recv(there, partner, group=receiving)
            dist.send(there, partner, group=sending)

    return _repeat(world, exchange, quick=quick) / 2


def _all_reduce(world: World, size: int, *, quick: bool) -> float:
    data = torch.zeros(size // 4, device=world.device)
    return _repeat(world, lambda: dist.all_reduce(data), quick=quick)


def _repeat(world: World, call: Callable[[], object], *, quick: bool) -> float:
    """Lower quartile of the seconds of one call; the first ones, which set up the connection, are not counted."""
    times = []
    for index in range(6 if quick else 14):
        dist.barrier(group=world.control)
        begun = time.perf_counter()
        call()
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)  # NCCL returns before the message has arrived
        if index > 1:
            times.append(time.perf_counter() - begun)
    return max(sorted(times)[len(times) // 4], 1e-9)


def _agreed(world: World, seconds: float | None) -> float:
    found = [item for item in world.gather(seconds) if isinstance(item, float)]
    return max(found)

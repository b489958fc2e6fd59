"""Seconds of a step: as planned from a calibration, and as measured, all plans in turn."""

import time

import torch.distributed as dist

from benchmarks.plan_accuracy.cases import Case
from benchmarks.plan_accuracy.memory import Steps
from benchmarks.shared.results import median
from lampseg.parallel.world import World
from lampseg.partition.plan import Plan


def measure_seconds(world: World, work: list[tuple[Case, Plan]], rounds: int) -> list[list[float]]:
    """Of every case, the seconds of each round's step, from when all ranks begin to when all have ended.

    The cases take turns, so that what else the machine does falls on all alike; the first round warms up.
    """
    steps = [Steps(case, plan, world=world) for case, plan in work]
    seconds: list[list[float]] = [[] for _ in work]
    for turn in range(rounds + 1):
        for number, each in enumerate(steps):
            dist.barrier(group=world.control)
            begun = time.perf_counter()
            each.step()
            dist.barrier(group=world.control)
            if turn:
                seconds[number].append(time.perf_counter() - begun)
    return seconds


def ratio_errors(predicted: list[float], measured: list[list[float]]) -> dict[tuple[int, int], float]:
    """For every pair of plans: predicted ratio of their step times / measured ratio - 1 (of medians)."""
    found = {}
    times = [median(values) for values in measured]
    for a in range(len(times)):
        for b in range(a):
            ratio = predicted[a] / predicted[b] / (times[a] / times[b])
            found[a, b] = max(ratio, 1 / ratio) - 1
    return found

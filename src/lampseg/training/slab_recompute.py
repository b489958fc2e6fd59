"""Plans with slabs that do not fit: as many modules run again as it takes, as `parallel.recompute` allows."""

from collections.abc import Sequence

from lampseg.parallel.spatial.forecast import slab_plan
from lampseg.parallel.spatial.recompute import Recompute
from lampseg.partition.costed import CostedNetwork
from lampseg.partition.plan import Plan
from lampseg.partition.problem import Problem
from lampseg.partition.search import Found

HOPELESS = 1.1
"""Where by a rough plan slabs need so many times the memory, they do not fit."""


def with_recompute(
    found: Sequence[Found],
    problem: Problem,
    model: CostedNetwork,
    *,
    stride: Sequence[int],
    searches: dict[tuple[int, ...], Recompute],
    allowed: bool = True,
    exactly: bool = False,
) -> list[Found]:
    """The same plans, if one of them fits; else with those modules run again that take least time, or least memory.

    `parallel.recompute: all` always runs again what makes the fullest device need least; `none` nothing, and neither
    does `all_but_last`, as the backward of each micro-batch follows its forward at once.

    Args:
        found: plans with slabs. The one that lacks least is searched; others only if that comes near to fitting.
        searches: by grid, those made so far: what a module takes is measured once.
        allowed: False takes `auto` for `none`.
        exactly: rehearse every kind of slab; else the fullest only.
    """
    always = problem.recompute == "all"
    if always and all(each.plan.choices.recomputed for each in found):
        return list(found)
    if not always and (problem.recompute is not None or not allowed or any(each.fits for each in found)):
        return list(found)
    ways: list[Found] = []
    for each in sorted(found, key=lambda each: lack(each.plan, problem)):
        if ways and not always and (ways[0].fits or lack(ways[0].plan, problem) > HOPELESS):
            break
        grid = each.plan.choices.slabs
        if grid not in searches:
            searches[grid] = Recompute(model, each.plan.choices, stride=stride, loss=problem.loss)
        ways.append(_recomputing(searches[grid], problem, model, stride=stride, exactly=exactly))
    return ways


def best_of(found: Sequence[Found], problem: Problem) -> Found:
    """The fastest that fits, or the one that lacks least."""
    fitting = [each for each in found if each.fits]
    if fitting:
        return min(fitting, key=lambda each: each.plan.step_seconds)
    return min(found, key=lambda each: lack(each.plan, problem))


def lack(plan: Plan, problem: Problem) -> float:
    """How many times its memory the fullest device needs."""
    return max(load.peak_bytes * problem.margin / (load.memory_bytes or float("inf")) for load in plan.devices)


def _recomputing(
    search: Recompute, problem: Problem, model: CostedNetwork, *, stride: Sequence[int], exactly: bool
) -> Found:
    if problem.memory is not None and problem.recompute != "all":
        fitting = search.fitting(problem.memory, margin=problem.margin, exactly=exactly)
        if fitting is not None:
            return Found(fitting, fits=True)
    choices = search.least_memory()
    least = slab_plan(model, choices, stride=stride, loss=problem.loss, memory=problem.memory, roughly=not exactly)
    return Found(least, fits=lack(least, problem) <= 1)

"""Plans with slabs that do not fit: as many modules run again as it takes, as `parallel.recompute` allows."""

from collections.abc import Sequence

from lampseg.parallel.spatial.forecast import Rehearsed
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
    known: Rehearsed,
    allowed: bool = True,
    exactly: bool = False,
    closest: bool = True,
) -> list[Found]:
    """The same plans, if one of them fits; else with those modules run again that take least time, or least memory.

    `parallel.recompute: all` always runs again what makes the fullest device need least; `none` nothing, and neither
    does `all_but_last`, as the backward of each micro-batch follows its forward at once.

    Args:
        found: plans with slabs. The one that lacks least is searched; others only if that comes near to fitting, and if
            their slabs do not keep, take and send the same bytes.
        searches: by grid, those made so far: what a module takes is measured once.
        known: slabs that were rehearsed before; those rehearsed now are added.
        allowed: False takes `auto` for `none`.
        exactly: rehearse every kind of slab; else the fullest only.
        closest: False: a plan that does not come near to fitting may be returned as it is.
    """
    always = problem.recompute == "all"
    if always and all(each.plan.choices.recomputed for each in found):
        return list(found)
    if not always and (problem.recompute is not None or not allowed or any(each.fits for each in found)):
        return list(found)
    ways: list[Found] = []
    enough = False
    searched: set[tuple[int, ...]] = set()
    for each in sorted(found, key=lambda each: lack(each.plan, problem)):
        if not always and (enough or _bytes_of(each.plan) in searched):
            continue
        searched.add(_bytes_of(each.plan))
        grid = each.plan.choices.slabs
        if grid not in searches:
            searches[grid] = Recompute(model, each.plan.choices, stride=stride, loss=problem.loss, known=known)
        search = searches[grid]
        way = _recomputing(search, problem, exactly=exactly, closest=closest)
        if not ways and problem.memory is not None:
            least = lack(way.plan, problem) if way else search.least_lack(problem.memory, margin=problem.margin)
            enough = least > HOPELESS or (way is not None and way.fits)
        ways.append(way or each)
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


def _bytes_of(plan: Plan) -> tuple[int, ...]:
    """Of a plan with slabs: by these, grids that cut other dimensions in the same way are alike."""
    (stage,) = plan.stages
    return stage.activation_bytes, stage.extra_bytes, stage.send_bytes, *(load.peak_bytes for load in plan.devices)


def _recomputing(search: Recompute, problem: Problem, *, exactly: bool, closest: bool) -> Found | None:
    """None: nothing comes near to fitting, and what comes nearest is not asked for."""
    memory, margin = problem.memory, problem.margin
    if memory is not None and problem.recompute != "all":
        fitting = search.fitting(memory, margin=margin, exactly=exactly)
        if fitting is not None:
            return Found(fitting, fits=True)
        if not closest and search.hopeless(memory, margin=margin):
            return None
    least = search.plan(search.least_memory(), memory, exactly=exactly)
    return Found(least, fits=lack(least, problem) <= 1)

"""Plans with slabs: every device on a slab of each volume, or the stages of a pipeline on slabs."""

import math
from collections.abc import Callable
from functools import partial

from lampseg.errors import UserError
from lampseg.parallel.spatial.forecast import Rehearsed, slab_plan
from lampseg.parallel.spatial.grids import choices_for, grids, slab_plans
from lampseg.parallel.spatial.mixed import by_rank, on_slabs
from lampseg.partition.problem import Problem
from lampseg.partition.search import Found
from lampseg.training.slab_recompute import HOPELESS, best_of, lack, with_recompute
from lampseg.training.subject import Subject


def in_slabs(
    subject: Subject,
    problem: Problem,
    *,
    roughly: bool = False,
    open_to_recompute: bool = True,
    closest: bool = True,
) -> Found:
    """The fastest plan that cuts volumes into slabs, of those that fit; or the one that lacks least.

    Args:
        roughly: take the first grid, and all slabs to be alike: for an alternative that is only named.
        open_to_recompute: where nothing fits, and `parallel.recompute` allows it, let modules run again.
        closest: False: where nothing fits, any plan will do.

    Raises:
        UserError: the devices can't share volumes; or the network is not known to be exact on slabs.
    """
    replicas = problem.replicas or 1
    if problem.devices % replicas or problem.devices == replicas:
        raise UserError(
            f"parallel.mode: spatial needs at least two devices for each volume; there are {problem.devices} for "
            f"{replicas} copies of the network"
        )
    count = problem.counts()[0]
    model, slabs = problem.costed(count), subject.config.parallel.slabs
    known: Rehearsed = {}
    plan_of = partial(slab_plan, model, stride=subject.stride, loss=problem.loss, memory=problem.memory, known=known)
    if slabs == "auto":
        plans = list(
            slab_plans(
                model,
                ranks=problem.devices // replicas,
                replicas=replicas,
                micro_batches=count,
                stride=subject.stride,
                loss=problem.loss,
                memory=problem.memory,
                most=1 if roughly else 2,
                known=known,
            )
        )
    else:
        choices = choices_for(model, slabs, micro_batches=count, replicas=replicas)
        if choices.processes != problem.devices:
            raise UserError(
                f"parallel.slabs: {'x'.join(map(str, slabs))} slabs and {replicas} copies of the network are for "
                f"{choices.processes} devices, there are {problem.devices}"
            )
        plans = [plan_of(choices, roughly=True)]
    search = partial(
        with_recompute,
        problem=problem,
        model=model,
        stride=subject.stride,
        searches={},
        known=known,
        allowed=open_to_recompute,
        closest=closest,
    )
    best = best_of(search([Found(plan, fits=lack(plan, problem) <= 1) for plan in plans]), problem)
    if roughly or lack(best.plan, problem) > HOPELESS:
        return best
    plan = plan_of(best.plan.choices)
    return search([Found(plan, fits=lack(plan, problem) <= 1)], exactly=True)[0]


def mixed(subject: Subject, problem: Problem, *, on_way: Callable[[], None] = lambda: None) -> Found:
    """The best pipeline whose places are shared by the slabs that the configuration gives.

    Raises:
        UserError: they can't share the devices; the network is not known to be exact on slabs, or can't be cut into
            so many stages.
    """
    grid, replicas = subject.config.parallel.slabs, problem.replicas or 1
    assert grid != "auto"
    sharing = math.prod(grid)
    if problem.devices == replicas * sharing:
        return in_slabs(subject, problem)
    if problem.devices % (replicas * sharing):
        raise UserError(
            f"parallel.slabs: {'x'.join(map(str, grid))} slabs and {replicas} copies of the network take a multiple of "
            f"{replicas * sharing} devices, there are {problem.devices}"
        )
    return by_rank(on_slabs(problem, grid, stride=subject.stride).solve(on_way=on_way))


def any_mixture(subject: Subject, problem: Problem, *, on_way: Callable[[], None]) -> Found | None:
    """The fastest pipeline on slabs that fits; None: none does. By the grids with the smallest surfaces."""
    best: Found | None = None
    replicas = problem.replicas or 1
    each = problem.devices // replicas
    walk = problem.costed(problem.counts()[-1]).costs.walk
    # Every operation must run somewhere, whatever is recomputed.
    least = max(float(walk[at, at + 1]) for at in range(len(walk)))
    most = max(problem.memory or (math.inf,)) / problem.margin
    for sharing in range(2, each):
        if each % sharing or least / sharing > most:
            continue
        for grid in grids(sharing, size=problem.size, stride=subject.stride)[:1]:
            try:
                found = by_rank(on_slabs(problem, grid, stride=subject.stride).solve(on_way=on_way))
            except UserError:  # not exact on slabs, or more places than stages
                continue
            if found.fits and (best is None or found.plan.step_seconds < best.plan.step_seconds):
                best = found
    return best

"""Stages on slabs: the planning problem of a pipeline whose every place is shared by ranks with a slab each.

Each rank runs a stage on its slab, so the problem is that of a pipeline of the *slab*: the network is recorded as the
rank with most planes and neighbours runs it, with the halos and sums over ranks that it sends among its kernels. The
same search, costs, timetable and rehearsal then serve.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from lampseg.errors import UserError
from lampseg.parallel.spatial.around import AroundSlab
from lampseg.parallel.spatial.cutting import AXES
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.partition.plan import Plan
from lampseg.partition.problem import Problem
from lampseg.partition.search import Found

Grid = tuple[int, int, int]


def on_slabs(problem: Problem, grid: Sequence[int], *, stride: Sequence[int]) -> Problem:
    """The problem of a pipeline each of whose places is shared by the ranks of a grid.

    Raises:
        UserError: they can't share the devices.
    """
    sharing = math.prod(grid)
    if problem.devices % sharing:
        raise UserError(
            f"{'x'.join(map(str, grid))} slabs share each volume between {sharing} devices; {problem.devices} are no "
            "multiple of that"
        )
    x, y, z = grid

    def around(shape: tuple[int, ...]) -> AroundSlab:
        return AroundSlab(_fullest(grid, shape=shape, stride=stride, device=problem.hardware.kind), shape)

    memory = problem.memory
    if memory is not None:
        memory = tuple(min(memory[first : first + sharing]) for first in range(0, len(memory), sharing))
    return replace(problem, devices=problem.devices // sharing, memory=memory, slabs=(x, y, z), around=around)


def by_rank(found: Found) -> Found:
    """The plan with a load for each rank of a replica, not for each place: at most what the fullest slab has."""
    return replace(found, plan=plan_by_rank(found.plan))


def plan_by_rank(plan: Plan) -> Plan:
    sharing = plan.choices.sharing
    loads = [
        replace(load, index=load.index * sharing + slab, memory_bytes=load.memory_bytes)
        for load in plan.devices
        for slab in range(sharing)
    ]
    return replace(plan, devices=tuple(loads))


def _fullest(
    grid: Sequence[int], *, shape: Sequence[int], stride: Sequence[int], device: Literal["cpu", "cuda"]
) -> SpatialParallel:
    """The rehearsal of the rank with most planes; of those, the one with most neighbours."""
    cut = [n for n, count in enumerate(grid) if count > 1]
    sizes, dims = {AXES[n]: grid[n] for n in cut}, {AXES[n]: n + 2 for n in cut}
    place = {}
    for n in cut:
        one = SpatialParallel.rehearsal({AXES[n]: grid[n]}, {AXES[n]: n + 2}, stride=stride)
        (shard,) = one.layout(shape)
        planes = [end - begin for begin, end in zip(shard.edges, shard.edges[1:])]
        place[AXES[n]] = max(range(grid[n]), key=lambda r: (planes[r], (r > 0) + (r < len(planes) - 1)))
    return SpatialParallel.rehearsal(sizes, dims, place=place, stride=stride, device=device)

"""Questions asked backwards: the largest patch that fits, the fewest devices, and what would have to change."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from lampseg.errors import UserError
from lampseg.partition.plan import Plan
from lampseg.partition.problem import Problem
from lampseg.partition.search import Found
from lampseg.units import format_bytes

MOST_DEVICES = 64
COARSE = 16
"""Voxels between the patches that a remedy considers: each size is recorded anew."""


@dataclass(frozen=True)
class Lever:
    """Something that could be changed, and what it buys."""

    change: str
    """What to set, in words."""
    plan: Plan | None
    """With this change alone; None: it can't be planned."""
    fits: bool

    def text(self) -> str:
        if self.plan is None:
            return f"{self.change}: not possible"
        needs = format_bytes(self.plan.peak_bytes)
        return f"{self.change}: {'fits' if self.fits else 'not enough'}, the fullest device needs {needs}"


Solve = Callable[[Problem], Found]


@dataclass(frozen=True)
class Change:
    """Another way to plan on the same devices."""

    change: str
    """What to set, in words."""
    solve: Solve


@dataclass(frozen=True)
class Ways:
    """How the plans are found that answer questions."""

    solve: Solve = Problem.solve
    """On the devices that there are."""
    several: Solve | None = None
    """On another number of devices; None: by stages."""
    changes: tuple[Change, ...] = ()
    """That may be proposed."""
    elsewhere: str = ""
    """What to set for another number of devices, in words."""
    recomputes: bool = True
    """Whether `parallel.recompute` makes a difference."""


def largest_patch(
    problem: Problem,
    *,
    stride: Sequence[int],
    volume: Sequence[int],
    solve: Solve = Problem.solve,
    roughly: bool = False,
) -> tuple[tuple[int, ...], Plan] | None:
    """The largest patch that fits the problem's devices, and its plan; None if not even the smallest does.

    Patches are cubes, cut off at the volume where it is smaller; the whole volume is the largest. All edges are
    multiples of the network's stride. More voxels are taken to need more memory. Each size is recorded anew, so few are
    tried: what does not fit says how much of it would, and from one that fits the steps up double.

    Args:
        stride: total stride of the network, for each axis.
        volume: the largest volume in voxels.
        solve: finds the plan of a problem; it may be another kind of plan than stages.
        roughly: take the first that fits, of those that should just do so.
    """
    step = math.lcm(*stride)
    whole = tuple(-(-size // s) * s for size, s in zip(volume, stride))

    def patch(edge: int) -> tuple[int, ...]:
        return tuple(min(size, edge) for size in whole)

    edges = [*range(step, max(whole), step), max(whole)]
    best: tuple[tuple[int, ...], Plan] | None = None
    low, middle, high = 0, len(edges) - 1, len(edges) - 1  # the whole volume is tried first
    stride_up = 1
    while low <= high:
        size = patch(edges[middle])
        try:
            found = solve(replace(problem, size=size))
        except UserError:  # too small: nothing is left at the network's deepest level
            low = middle + 1
            middle = (low + high) // 2
            continue
        if found.fits:
            best, low = (size, found.plan), middle + 1
            if roughly:
                break
            middle, stride_up = min(high, middle + stride_up), 2 * stride_up
            continue
        high = middle - 1
        enough = math.prod(size) * _share(found.plan)
        guess = sum(1 for edge in edges[: high + 1] if math.prod(patch(edge)) <= enough) - 1
        middle = max(low, guess if best is None else (low + high) // 2)
    return best


def _share(plan: Plan) -> float:
    """What part of its voxels fits a plan that does not, roughly: all but the network's state grows with them."""
    shares = [1.0]
    for load in plan.devices:
        fixed = load.library_bytes + load.parameter_bytes + load.gradient_bytes + load.optimizer_bytes
        if load.memory_bytes is not None and load.peak_bytes > fixed:
            shares.append((load.memory_bytes - fixed) / (load.peak_bytes - fixed))
    return max(0.0, min(shares))


def fewest_devices(problem: Problem, *, memory: float, solve: Solve | None = None, unit: int = 1) -> Plan | None:
    """The plan with the fewest devices of so many bytes each that fits; None if MOST_DEVICES do not do.

    All devices share one copy of the network. More devices are taken to need less memory each, so the number is
    doubled until it does and then found by bisection.

    Args:
        solve: finds a plan that is none of stages, such as one of slabs.
        unit: devices come in multiples of it.
    """
    model = problem.costed(problem.counts()[-1])
    costs = model.costs
    modes = None if problem.recompute is None else (problem.recompute,)
    alone = model.regime(micro_batches=1, held=(1,), recompute=modes)
    # What no number of devices does for: rehearsed, plans may need less than they are estimated to.
    hopeless = costs.least_peak(alone) + model.hardware.reserve_bytes > memory / problem.margin

    def fitting(units: int) -> Plan | None:
        devices = units * unit
        if solve is not None:
            try:
                found = solve(replace(problem, devices=devices, memory=(memory,) * devices, replicas=1))
            except UserError:  # so many can't share a volume
                return None
            return found.plan if found.fits else None
        if problem.rehearse is None and hopeless:
            return None
        for schedule in ("1f1b", "interleaved") if problem.schedule is None else (problem.schedule,):
            if (2 if schedule in ("v", "interleaved") else 1) * devices <= costs.count:
                asked = replace(problem, devices=devices, memory=(memory,) * devices, replicas=1, schedule=schedule)
                found = asked.solve()
                if found.fits:
                    return found.plan
        return None

    stages_each = 2 if problem.schedule in ("v", "interleaved") else 1
    most = MOST_DEVICES // unit if solve is not None else min(MOST_DEVICES, costs.count // stages_each)
    devices = max(1, math.ceil(costs.state[0, -1] / memory))  # the parameters alone need as many
    too_few = devices - 1
    plan: Plan | None = None
    while devices <= most and (plan := fitting(devices)) is None:
        too_few, devices = devices, min(2 * devices, most) if devices < most else most + 1
    if plan is None:
        return None
    while devices - too_few > 1:
        middle = (too_few + devices) // 2
        found = fitting(middle)
        if found is None:
            too_few = middle
        else:
            plan, devices = found, middle
    return plan


def levers(problem: Problem, *, stride: Sequence[int], ways: Ways = Ways()) -> Iterator[Lever]:
    """What could be changed so that a problem that does not fit does, one thing at a time."""
    assert problem.memory is not None
    solve = ways.solve
    for each in ways.changes:
        yield _lever(problem, each.change, each.solve)
    # On slabs all_but_last is as good as none: each micro-batch's backward follows at once.
    if ways.recomputes and (problem.recompute == "none" or (ways.several and problem.recompute == "all_but_last")):
        yield _lever(replace(problem, recompute=None), "parallel.recompute: auto", solve)
    if problem.precision == "float32":
        yield _lever(replace(problem, precision="bfloat16"), "precision: bfloat16", solve)
    counts = problem.counts()
    if max(counts) < problem.batch:
        change = replace(problem, micro_batches=problem.batch)
        yield _lever(change, f"parallel.micro_batches: {problem.batch} (one sample each)", solve)
    least = min(problem.memory)
    fewest = fewest_devices(problem, memory=least, solve=ways.several)
    count = fewest.choices.processes if fewest else MOST_DEVICES
    yield Lever(f"{count} devices of {format_bytes(least)}{ways.elsewhere}", fewest, bool(fewest))
    coarse = [max(step, step * (COARSE // step)) for step in stride]
    patch = largest_patch(problem, stride=coarse, volume=problem.size, solve=solve, roughly=True)
    size = None if patch is None else list(patch[0])
    yield Lever(f"a patch of {size}" if size else "a smaller patch", patch[1] if patch else None, bool(patch))


def _lever(problem: Problem, change: str, solve: Solve) -> Lever:
    try:
        found = solve(problem)
    except UserError:  # for instance, of tiles: nothing can run in them
        return Lever(change, None, fits=False)
    return Lever(change, found.plan, found.fits)


def remedies(problem: Problem, closest: Plan, *, stride: Sequence[int], ways: Ways = Ways()) -> str:
    """What to say when nothing fits: what it lacks, and what each change would buy."""
    assert problem.memory is not None
    # Estimates are up to a quarter too high: what fits by them, fits.
    rough = replace(problem, rehearse=None)
    needs = ", ".join(format_bytes(load.peak_bytes) for load in closest.devices)
    has = ", ".join(format_bytes(limit) for limit in problem.memory)
    again = len(closest.choices.recomputed)
    how = f" (running {again} module{'s' * (again != 1)} again in the backward)" if again else ""
    if tile := closest.choices.tile:
        how = f" (in tiles of {tile} plane{'s' * (tile != 1)})"
    lines = [
        f"{problem.name} on {'x'.join(map(str, problem.size))} with batch {problem.batch} does not fit: at best{how} "
        f"the devices need {needs}, they have {has}. What each change alone would do:"
    ]
    lines += [f"  - {lever.text()}" for lever in levers(rough, stride=stride, ways=ways)]
    lines.append("`lampseg plan` with --largest-patch or --fewest-devices finds these exactly.")
    return "\n".join(lines)

"""Plans that run the network tile by tile on one device: asked for, or where nothing else fits."""

from dataclasses import replace
from typing import Literal

from lampseg.errors import UserError
from lampseg.parallel.tiled.forecast import thicknesses, tile_choices, tile_plan
from lampseg.parallel.tiled.units import units_of
from lampseg.partition.plan import Alternative, DeviceLoad, Plan, describe_choices
from lampseg.partition.problem import Problem
from lampseg.partition.search import Found

TRIED = 3
"""Thicknesses of which the fastest that fits is taken; thinner ones are tried if none does."""
CLOSE = 1.02
"""Without a limit of memory, tiles are so thick that the peak is at most so many times the least that was found."""


def in_tiles(problem: Problem, *, tile: int | Literal["auto"], tried: int = TRIED, roughly: bool = False) -> Found:
    """The fastest plan with tiles, of those that fit; or the one that lacks least.

    Args:
        tile: planes of a tile of the network's input; auto: some are tried.
        tried: thicknesses, unless none of them fits.
        roughly: try one, for an alternative that is only named.

    Raises:
        UserError: there are several devices, or nothing in the network can run in tiles.
    """
    check_alone(problem.devices)
    found: list[Found] = []
    to_try = list(thicknesses(problem.size[0])) if tile == "auto" else [tile]
    while to_try:
        plan = _planned(problem, to_try.pop(0))
        found.append(Found(plan, fits=lack(plan, problem) <= 1))
        if roughly or (len(found) >= tried and any(each.fits for each in found)):
            break
        if _hopeless(plan, problem):
            to_try = to_try[-1:]  # for what it lacks at best
    fitting = [each for each in found if each.fits]
    if not fitting:
        return min(found, key=lambda each: lack(each.plan, problem))
    if problem.memory is None:
        least = min(each.plan.peak_bytes for each in fitting)
        fitting = [each for each in fitting if each.plan.peak_bytes <= CLOSE * least]
    return min(fitting, key=lambda each: each.plan.step_seconds)


def check_alone(devices: int) -> None:
    """Raises UserError if there are several devices."""
    if devices > 1:
        raise UserError(
            f"parallel.mode: tiled is for one device, there are {devices}: use mode spatial, by which they share every "
            "volume, or pipeline, or --devices 1"
        )


def or_in_tiles(problem: Problem, found: Found, *, tile: int | Literal["auto"], named: bool = False) -> Found:
    """What was found for one device, or tiles where that does not fit and they do; the other is an alternative.

    Args:
        named: tiles are an alternative, too, where they are not needed.
    """
    if problem.recompute is not None or (found.fits and not named):  # tiles recompute
        return found
    try:
        tiles = in_tiles(problem, tile=tile, roughly=found.fits)
    except UserError:  # nothing can run in tiles
        return found
    if not found.fits:
        better = tiles if tiles.fits or lack(tiles.plan, problem) < lack(found.plan, problem) else found
        if better is found:
            return found
        why = Alternative(describe_choices(found.plan.choices), None, found.plan.peak_bytes, "does not fit")
        return replace(tiles, plan=replace(tiles.plan, alternatives=(why,)))
    time = tiles.plan.step_seconds / found.plan.step_seconds - 1
    memory = tiles.plan.peak_bytes / found.plan.peak_bytes - 1
    price = f"{time:+.0%} in time, {memory:+.0%} in memory; taken if nothing else fits, or by parallel.mode: tiled"
    other = Alternative(
        describe_choices(tiles.plan.choices),
        tiles.plan.step_seconds if tiles.fits else None,
        tiles.plan.peak_bytes,
        price if tiles.fits else "does not fit",
    )
    alternatives = (*found.plan.alternatives[:1], other, *found.plan.alternatives[1:])
    return replace(found, plan=replace(found.plan, alternatives=alternatives))


def _planned(problem: Problem, planes: int) -> Plan:
    count = problem.counts()[0]
    model = problem.costed(count)
    if not units_of(model.graph):
        raise UserError(
            f"parallel.mode: tiled: nothing in {problem.name} can run in tiles: it has no convolution that takes and "
            "gives one tensor (transposed ones are not cut); use parallel.mode: auto, by which parts of it run again"
        )
    choices = tile_choices(planes, micro_batches=count)
    return tile_plan(model, choices, loss=problem.loss, memory=problem.memory)


def _hopeless(plan: Plan, problem: Problem) -> bool:
    """Whether the plan does not fit, and thinner tiles would not either: they only need less beside what is kept."""

    def least(load: DeviceLoad) -> float:
        library = load.library_bytes - problem.hardware.reserve_bytes  # of a convolution of a tile
        return (load.peak_bytes - load.temporary_bytes - library) * problem.margin

    return any(least(load) > (load.memory_bytes or float("inf")) for load in plan.devices)


def lack(plan: Plan, problem: Problem) -> float:
    """How many times its memory the fullest device needs."""
    return max(load.peak_bytes * problem.margin / (load.memory_bytes or float("inf")) for load in plan.devices)

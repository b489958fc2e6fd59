"""Which parts of a chain run again in the backward: the least time within the memory, by dynamic programming.

A forward pass goes through positions 0, 1, ..., n; a stretch goes from one to another, in one way: its activations are
kept, or it runs again (a module, which may contain others: then it bridges what they would do). A choice is a way from
0 to n. What is alive at a position is the sum of what the stretches before it keep; at no stretch may that and the
stretch's own peak, in its forward or its backward, exceed the limit.

States of a position are pairs of bytes and seconds. One that needs no fewer bytes and no less time than another can't
lead to anything better, and is dropped; so the result is exact. (Of more than MOST states, those within 1/MOST of the
limit of each other count as one.)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MOST = 4096
_NEAR = 1e-7


@dataclass(frozen=True)
class Stretch:
    """A part of the chain, done in one way."""

    first: int
    last: int
    """Positions."""
    kept: int
    """Bytes alive at its end, above those at its beginning; may be negative."""
    peak: int
    """Most bytes alive during its forward or its backward, above those at its beginning."""
    seconds: float
    """What running again takes."""
    module: str | None = None
    """That runs again; None: activations are kept."""


@dataclass(frozen=True)
class Way:
    """A choice of stretches."""

    peak: int
    seconds: float
    modules: tuple[str, ...]
    """That run again, in order."""


_State = tuple[int, float, int, Any]
"""Bytes alive, seconds, peak so far, and the modules so far as nested pairs."""


def quickest(stretches: Sequence[Stretch], *, positions: int, limit: float) -> Way | None:
    """The choice that runs least again, of those that need at most `limit` bytes; None if there is none.

    Args:
        positions: n, the last one.
    """
    by_first: dict[int, list[Stretch]] = {}
    for stretch in stretches:
        assert 0 <= stretch.first < stretch.last <= positions
        by_first.setdefault(stretch.first, []).append(stretch)
    states: dict[int, list[_State]] = {0: [(0, 0.0, 0, None)]}
    for position in range(positions):
        for alive, seconds, peak, modules in _best(states.pop(position, []), limit):
            for stretch in by_first.get(position, ()):
                most = max(alive + stretch.peak, alive, alive + stretch.kept)
                if most > limit:
                    continue
                so_far = modules if stretch.module is None else (modules, stretch.module)
                state = alive + stretch.kept, seconds + stretch.seconds, max(peak, most), so_far
                states.setdefault(stretch.last, []).append(state)
    ends = states.get(positions, [])
    if not ends:
        return None
    _, seconds, peak, modules = min(ends, key=lambda state: (state[1], state[2]))
    names: list[str] = []
    while modules is not None:
        modules, name = modules
        names.append(name)
    return Way(peak, seconds, tuple(reversed(names)))


def leanest(stretches: Sequence[Stretch], *, positions: int) -> Way:
    """The choice that needs fewest bytes, and of those the one that runs least again; within 1e-6 of the bytes."""
    best = quickest(stretches, positions=positions, limit=_least(stretches, positions)[1])
    assert best is not None, "there is a way"
    return best


def least_peak(stretches: Sequence[Stretch], *, positions: int) -> float:
    """Bytes that every choice needs, and more than 1 - 1e-6 of what the leanest does."""
    return _least(stretches, positions)[0]


def of_use(stretches: Sequence[Stretch], *, positions: int, limit: float) -> list[Stretch]:
    """Those that are part of some choice that needs at most `limit` bytes."""
    fewest = _fewest(stretches, positions, limit)
    # At each position, the most bytes that may be alive for there to be a way to the end.
    most = [-math.inf] * positions + [limit]
    for stretch in sorted(stretches, key=lambda stretch: -stretch.first):
        most[stretch.first] = max(most[stretch.first], _most(stretch, most, limit))
    return [stretch for stretch in stretches if fewest[stretch.first] <= _most(stretch, most, limit)]


def _most(stretch: Stretch, most: Sequence[float], limit: float) -> float:
    """Bytes that may be alive before a stretch."""
    return min(limit - max(stretch.peak, stretch.kept, 0), most[stretch.last] - stretch.kept)


def _fewest(stretches: Sequence[Stretch], positions: int, limit: float) -> list[float]:
    """The fewest bytes alive at each position that choices within the limit get by with; inf: there is none."""
    fewest = [0.0] + [math.inf] * positions
    for stretch in sorted(stretches, key=lambda stretch: stretch.first):
        alive = fewest[stretch.first]
        if alive + max(stretch.peak, stretch.kept, 0) <= limit:
            fewest[stretch.last] = min(fewest[stretch.last], alive + stretch.kept)
    return fewest


def _least(stretches: Sequence[Stretch], positions: int) -> tuple[float, float]:
    """Two limits next to each other: within the first there is no choice, within the second there is."""
    low, high = 0.0, float(sum(max(stretch.peak, stretch.kept, 0) for stretch in stretches))
    while high - low > max(1.0, high) * _NEAR:
        middle = (low + high) / 2
        if _fewest(stretches, positions, middle)[-1] < math.inf:
            high = middle
        else:
            low = middle
    return low, high


def _best(states: list[_State], limit: float) -> list[_State]:
    """Those that are in no way worse than another."""
    kept: list[_State] = []
    for state in sorted(states, key=lambda state: (state[0], state[1], state[2])):
        if not kept or state[1] < kept[-1][1]:
            kept.append(state)
    if len(kept) <= MOST or limit == float("inf"):
        return kept
    cells = {int(state[0] / limit * MOST): state for state in kept}  # of each cell the last is the quickest
    return list(cells.values())

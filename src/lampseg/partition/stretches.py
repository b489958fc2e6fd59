"""Which parts of a chain run again in the backward: the least time within the memory, by dynamic programming.

A forward pass goes through positions 0, 1, ..., n; a stretch goes from one to another, in one way: its activations are
kept, or it runs again (a module, which may contain others: then it bridges what they would do). A choice is a way from
0 to n. What is alive at a position is the sum of what the stretches before it keep; at no stretch may that and the
stretch's own peak, in its forward or its backward, exceed the limit.

States of a position are pairs of bytes and seconds. One that needs no fewer bytes and no less time than another can't
lead to anything better, and is dropped; so the result is exact. (Of more than MOST states, those within 1/MOST of the
limit of each other count as one.)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MOST = 4096
_HALVINGS = 22


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
    best = quickest(stretches, positions=positions, limit=float("inf"))
    assert best is not None, "keeping everything is a way"
    low = 0.0
    for _ in range(_HALVINGS):
        middle = (low + best.peak) / 2
        found = quickest(stretches, positions=positions, limit=middle)
        if found is None:
            low = middle
        else:
            best = found
    return best


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

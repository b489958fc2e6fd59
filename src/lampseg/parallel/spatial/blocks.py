"""The blocks of a network on a slab: what each module takes if it keeps its activations, and if it runs again.

Rehearsals on fake tensors measure it. The first tells which modules could be worth it: those that are called once, keep
more than what they return, and leave their inputs as they are. It also bounds what each of them takes, as it frees
tensors as a second run does: one that runs again keeps at least what it returns, in its second run reaches what its
forward did, and then has all of its activations, so that its backward needs no less than if they had been kept. Modules
that by these bounds could be part of what fits run again in further rehearsals, those not inside each other at once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lampseg.parallel.spatial.meter import Meter
from lampseg.partition.stretches import Stretch, leanest, least_peak, of_use

WORTH = 0.002
"""A module that keeps less than this part of all activations inside is left alone."""
_ROUNDING = 1e-6
"""A few bytes: of numbers that one of the two keeps."""


@dataclass(frozen=True)
class _Candidate:
    """A module that may run again."""

    name: str
    depth: int
    """How many of them it is in, with itself."""
    bound: Stretch
    """In which no figure is too high."""


class Blocks:
    """Every part of a forward pass in each way it may be done, measured as far as it is asked for.

    Args:
        measured: rehearses with the modules of these names running again, and watches those named second; `early` as
            in `Meter`.
        every: names of the network's modules.
    """

    def __init__(self, measured: Callable[[Sequence[str], Sequence[str], bool], Meter], every: Sequence[str]) -> None:
        self._measured, self._every = measured, every
        first = measured((), every, True)
        self.positions = len(first.points)
        self.candidates = _candidates(first)
        self._least_kept = _kept(first)
        self._first: Meter | None = None
        self._again: dict[str, Stretch] = {}

    def least_peak(self) -> float:
        """Bytes that any choice needs at least."""
        return least_peak(self._bounds(), positions=self.positions)

    def within(self, limit: float) -> list[Stretch]:
        """All that could be part of a choice that needs at most `limit` bytes; none if there is no such choice."""
        while useful := of_use(self._bounds(), positions=self.positions, limit=limit):
            names = {stretch.module for stretch in useful}
            unknown = [each for name, each in self.candidates.items() if name in names and name not in self._again]
            if self._first is None:
                self._all_kept()
            elif unknown:  # first those that contain others: perhaps these are of no use then
                self._rehearse([each.name for each in unknown if each.depth == unknown[0].depth])
            else:
                return [stretch for stretch in self._measured_ones() if stretch.module in names]
        return []

    def leanest(self) -> list[Stretch]:
        """All that could be part of the choice that needs least."""
        self._rehearse(leanest(self._bounds(), positions=self.positions).modules)
        return self.within(leanest(self._measured_ones(), positions=self.positions).peak)

    def _bounds(self) -> list[Stretch]:
        kept = self._least_kept if self._first is None else _kept(self._first)
        return [*kept, *(self._again.get(name, each.bound) for name, each in self.candidates.items())]

    def _measured_ones(self) -> list[Stretch]:
        again = (self._again[name] for name in self.candidates if name in self._again)
        return [*_kept(self._all_kept()), *again]

    def _all_kept(self) -> Meter:
        if self._first is None:
            self._first = self._measured((), self._every, False)
        return self._first

    def _rehearse(self, names: Sequence[str]) -> None:
        """Modules of which none contains another."""
        unknown = [name for name in names if name not in self._again]
        if unknown:
            run = self._measured(unknown, unknown, False)
            self._again.update((name, self._running_again(name, run)) for name in unknown)

    def _running_again(self, name: str, run: Meter) -> Stretch:
        first = self._all_kept()
        here, there = first.calls[name][0], run.calls[name][0]
        before = run.points[there.begin].alive
        inside = run.points[there.begin + 1 : there.end + 1]
        kept = first.points[here.begin + 1 : here.end + 1]
        more = sum(p.backward_seconds for p in inside) - sum(p.backward_seconds for p in kept)
        return Stretch(
            here.begin + 1,
            here.end + 1,
            inside[-1].alive - before,
            max(max(p.forward_peak, p.backward_peak) for p in inside) - before,
            max(more, 0.0),
            name,
        )


def _kept(run: Meter) -> list[Stretch]:
    return [
        Stretch(n, n + 1, point.alive - before, max(point.forward_peak, point.backward_peak) - before, 0.0)
        for n, (before, point) in enumerate(zip((0, *(p.alive for p in run.points)), run.points))
    ]


def _candidates(first: Meter) -> dict[str, _Candidate]:
    """Modules that may run again, by name; outer ones come first."""
    points = first.points
    least = WORTH * max(point.alive for point in points)
    found: dict[tuple[int, int], str] = {}
    for name, calls in first.calls.items():  # outer modules come first
        call = calls[0]
        spared = points[call.end].alive - points[call.begin].alive - call.made
        if len(calls) == 1 and not call.writes and spared > least:
            found.setdefault((points[call.begin].kernels, points[call.end].kernels), name)
    candidates = []
    for (begin, end), name in found.items():
        # By when they run: of a module with several names, only one says what it is part of.
        depth = sum(start <= begin and end <= stop for start, stop in found)
        candidates.append(_Candidate(name, depth, _bound(name, first)))
    return {each.name: each for each in sorted(candidates, key=lambda each: each.depth)}


def _bound(name: str, first: Meter) -> Stretch:
    call = first.calls[name][0]
    before = first.points[call.begin].alive
    inside = first.points[call.begin + 1 : call.end + 1]
    # It runs again up to the last tensor that autograd kept: certainly up to the segment of that.
    last = max((n for n, point in enumerate(inside) if point.keeps), default=0)
    peaks = [*(p.backward_peak for p in inside), *(p.forward_peak for p in inside[:last]), before + call.made]
    return Stretch(call.begin + 1, call.end + 1, call.made, int((max(peaks) - before) * (1 - _ROUNDING)), 0.0, name)

"""Every cut into K stages, one after the other: what the solver's dynamic programme is compared with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lampseg.partition.cost import IntervalCosts, Regime, Table
from lampseg.partition.solver import ONE_MICRO_BATCH_SLACK

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Value:
    """What a cut is judged by."""

    seconds: float
    """(M - 1) x the slowest stage + the sum of all stages and their messages."""
    peak: float
    """Bytes of the fullest stage."""
    received: float
    """Bytes that all stages receive."""


@dataclass(frozen=True)
class Best:
    """The best of each rule over all cuts."""

    seconds: float
    peak: float
    """The least, among those whose slowest stage is within the slack."""
    received: float
    """The least, among those within the slack of both."""
    too_long: bool
    """Whether that one's messages take longer than allowed, so that the fastest cut is taken."""


class Brute:
    """All cuts of one problem.

    Args:
        memory: bytes of each stage's device; a stage that does not fit runs its forward again, if that does.
    """

    def __init__(
        self, costs: IntervalCosts, *, stages: int, regime: Regime, memory: Sequence[float] | None = None
    ) -> None:
        self.count, self.stages, self.micro_batches = costs.count, stages, regime.micro_batches
        self.received = costs.received
        self.seconds: list[Table] = []
        self.peak: list[Table] = []
        for stage in range(stages):
            limit = np.inf if memory is None else memory[stage]
            keep = costs.peak_bytes(regime, held=regime.held[stage], again=False)
            again = costs.peak_bytes(regime, held=regime.held[stage], again=True)
            fits = keep <= limit
            self.peak.append(np.where(fits, keep, again))
            last = stage == len(regime.held) - 1  # its only forward is the one before its backward
            seconds = np.where(fits | last, costs.seconds(again=False), costs.seconds(again=True))
            self.seconds.append(np.where(fits | (again <= limit), seconds, np.inf))
        self.messages = 2 * costs.transfer

    def number(self) -> int:
        """How many cuts there are."""
        total = 1
        for k in range(self.stages - 1):
            total = total * (self.count - 1 - k) // (k + 1)
        return total

    def value(self, cuts: Sequence[int]) -> Value:
        spans = list(zip((0, *cuts), (*cuts, self.count), strict=True))
        seconds = [float(self.seconds[k][span]) for k, span in enumerate(spans)]
        path = sum(seconds) + sum(float(self.messages[span]) for span in spans)
        return Value(
            (self.micro_batches - 1) * max(seconds) + path,
            max(float(self.peak[k][span]) for k, span in enumerate(spans)),
            sum(float(self.received[span]) for span in spans),
        )

    def best(self, slack: float) -> "Best":
        """What the solver's three rules choose, found by looking at every cut.

        Of cuts that are equally fast (to rounding) the one whose slowest stage is fastest sets the bounds.
        """
        fastest, slowest_of_it, path_of_it = np.inf, np.inf, np.inf
        for slowest, path, _, _ in self._all():
            time = path if self.micro_batches == 1 else (self.micro_batches - 1) * slowest + path
            least = float(time.min())
            if least < fastest * (1 - _ROUNDING):
                fastest, slowest_of_it, path_of_it = least, np.inf, np.inf
            near = time <= fastest * (1 + _ROUNDING)
            if near.any():
                slowest_of_it = min(slowest_of_it, float(slowest[near].min()))
                path_of_it = min(path_of_it, float(path[near].min()))
        bound = slowest_of_it * (1 + slack) if self.micro_batches > 1 else np.inf
        lean = min(float(np.where(slowest <= bound, peak, np.inf).min()) for slowest, _, peak, _ in self._all())
        sends, shortest = np.inf, np.inf
        for slowest, path, peak, received in self._all():
            allowed = (slowest <= bound) & (peak <= lean * (1 + slack)) & np.isfinite(path)
            least = float(np.where(allowed, received, np.inf).min())
            if least < sends:
                sends, shortest = least, np.inf
            shortest = min(shortest, float(np.where(allowed & (received <= sends), path, np.inf).min()))
        total = path_of_it * (1 + (slack if self.micro_batches > 1 else ONE_MICRO_BATCH_SLACK))
        return Best(fastest, lean, sends, too_long=shortest > total)

    def slowest(self) -> float:
        """The least time of the slowest stage."""
        return min(float(slowest.min()) for slowest, _, _, _ in self._all())

    def _all(self) -> Iterator[tuple[NDArray[np.float64], ...]]:
        """(slowest stage, sum of paths, fullest stage, bytes received) of all cuts, in blocks with one first cut."""
        n = self.count
        for first in range(1, n - self.stages + 2):
            span = (0, first)
            block = [
                np.array([self.seconds[0][span]]),
                np.array([self.seconds[0][span] + self.messages[span]]),
                np.array([self.peak[0][span]]),
                np.array([self.received[span]]),
            ]
            block = self._extended(block, np.array([first]), 1)
            yield tuple(block)

    def _extended(self, block: list[NDArray[np.float64]], ends: NDArray[np.int64], stage: int) -> list[Table]:
        """Adds the stages from `stage` on, for every place at which each may end; `ends`: where those before end."""
        n, last = self.count, stage == self.stages - 1
        if last:
            starts, stops, which = ends, np.full(len(ends), n), np.arange(len(ends))
        else:
            room = self.stages - 1 - stage
            lengths = np.maximum(n - room - ends, 0)
            which = np.repeat(np.arange(len(ends)), lengths)
            starts = ends[which]
            offsets = np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            stops = starts + 1 + offsets
        seconds = self.seconds[stage][starts, stops]
        block = [
            np.maximum(block[0][which], seconds),
            block[1][which] + seconds + self.messages[starts, stops],
            np.maximum(block[2][which], self.peak[stage][starts, stops]),
            block[3][which] + self.received[starts, stops],
        ]
        return block if last else self._extended(block, stops, stage + 1)

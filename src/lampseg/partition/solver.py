"""The cut of a schedule with one stage a device: exact, by dynamic programming over all cuts.

With n micro-batches the predicted time of a step is

    (n - 1) x the slowest stage  +  the sum over stages of their time and their messages

(the slowest stage sets the pace; the first micro-batch goes through all). Every pass is the same recursion:

1. Among the splits that fit the memory: the smallest such time. For a bound T on the slowest stage the sum is minimised
   exactly; T is lowered from one solution to the next, until no better one is possible.
2. Among the splits whose slowest stage is within `slack` of that one's: the least memory of the fullest stage.
3. Among those within `slack` of both: the split that sends least.

(With one micro-batch there is no pace to keep, only messages to save: 2% of the time are given for balanced memory.)

Where the memory of a stage does not do, its forward is run again (recompute), if that is left open; each possible stage
takes the faster way that fits. The number of positions is the number of operations that do work, so there is no need
for a heuristic.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lampseg.partition.cost import IntervalCosts, Regime, Table
from lampseg.partition.plan import Recompute

ONE_MICRO_BATCH_SLACK = 0.02


@dataclass(frozen=True)
class Cut:
    """Where stages 1, 2, ... begin, as positions of the cost tables, and which stages run their forward again."""

    positions: tuple[int, ...]
    recompute: tuple[Recompute, ...]


@dataclass(frozen=True)
class _Tables:
    """Of one stage, for every interval: infinite where it does not fit."""

    seconds: Table
    path: Table
    """Seconds and messages."""
    peak: Table
    again: NDArray[np.bool_]


def solve(
    costs: IntervalCosts,
    *,
    stages: int,
    regime: Regime,
    memory: Sequence[float] | None = None,
    slack: float = 0.004,
) -> Cut | None:
    """Finds the cuts; None if no split fits `memory` (bytes of each stage's device) or there are too few operations.

    Args:
        regime: `held` and, if given, `recompute` have an entry for each stage.
        slack: see the three passes above.
    """
    if stages > costs.count:
        return None
    tables = _tables(costs, regime, stages, memory)
    fastest = _fastest(tables, regime.micro_batches)
    if fastest is None:
        return None
    bound = _slowest(tables, fastest) * (1 + slack)
    total = sum(t.path[span] for t, span in zip(tables, _spans(fastest, costs.count)))
    total *= 1 + (slack if regime.micro_batches > 1 else ONE_MICRO_BATCH_SLACK)
    limit = bound if regime.micro_batches > 1 else np.finfo(float).max
    leanest = _split(_each(tables, lambda t: np.where(t.seconds <= limit, t.peak, np.inf)), combine=np.maximum)
    assert leanest is not None
    most = leanest[0] * (1 + slack)
    received = costs.received
    sends = _split(
        _each(tables, lambda t: np.where((t.seconds <= limit) & (t.peak <= most), received, np.inf)), combine=np.add
    )
    assert sends is not None
    chosen = sends[1]
    if sum(t.path[span] for t, span in zip(tables, _spans(chosen, costs.count))) > total:
        chosen = fastest  # less memory is not worth longer messages
    again = [bool(t.again[span]) for t, span in zip(tables, _spans(chosen, costs.count))]
    given = regime.recompute
    modes = given if given is not None else tuple[Recompute, ...]("all" if a else "none" for a in again)
    return Cut(tuple(chosen), modes)


def _tables(costs: IntervalCosts, regime: Regime, stages: int, memory: Sequence[float] | None) -> list[_Tables]:
    """Of every stage; stages that are alike share one."""
    made: dict[tuple[object, ...], _Tables] = {}
    found = []
    for stage in range(stages):
        limit = np.inf if memory is None else memory[stage]
        again = None if regime.recompute is None else regime.recompute[stage] != "none"
        # The last stage puts off its forward to the backward: it runs once in either way.
        last = stage == len(regime.held) - 1
        key = (regime.held[stage], again, limit, last)
        if key not in made:
            made[key] = _stage_tables(costs, regime, held=regime.held[stage], again=again, limit=limit, last=last)
        found.append(made[key])
    return found


def _stage_tables(
    costs: IntervalCosts, regime: Regime, *, held: int, again: bool | None, limit: float, last: bool
) -> _Tables:
    """Args:
    again: whether the forward runs again; None: where the memory needs it.
    """
    if again is None:
        once = costs.peak_bytes(regime, held=held, again=False)
        runs_again = once > limit
        peak = np.where(runs_again, costs.peak_bytes(regime, held=held, again=True), once)
    else:
        peak = costs.peak_bytes(regime, held=held, again=again)
        runs_again = np.full(peak.shape, again)
    seconds = costs.seconds(again=False)
    if not last and runs_again.any():
        seconds = np.where(runs_again, costs.seconds(again=True), seconds)
    seconds = np.where(peak <= limit, seconds, np.inf)
    return _Tables(seconds, seconds + 2 * costs.transfer, peak, runs_again)


def _each(tables: Sequence[_Tables], make: Callable[[_Tables], Table]) -> list[Table]:
    """Of every stage what `make` makes of its tables; the same object for stages that share them."""
    made = {id(t): t for t in tables}
    results = {key: make(t) for key, t in made.items()}
    return [results[id(t)] for t in tables]


def _paths_within(tables: Sequence[_Tables], bound: float) -> list[Table]:
    return _each(tables, lambda t: np.where(t.seconds <= bound, t.path, np.inf))


def _fastest(tables: Sequence[_Tables], micro_batches: int) -> list[int] | None:
    """The cuts of the smallest (n - 1) x slowest + sum of paths."""
    least = _split([t.seconds for t in tables], combine=np.maximum)
    if least is None:
        return None
    best, chosen = np.inf, None
    bound = np.inf
    while True:
        found = _split(_paths_within(tables, bound), combine=np.add)
        if found is None:
            break
        slowest = _slowest(tables, found[1])
        value = (micro_batches - 1) * slowest + found[0]
        if value < best:
            best, chosen = value, found[1]
        # A lower bound on the slowest stage costs a larger sum: nothing below can beat this any more.
        if (micro_batches - 1) * least[0] + found[0] >= best:
            break
        bound = np.nextafter(slowest, 0)
    assert chosen is not None
    return chosen


def _spans(cuts: Sequence[int], count: int) -> list[tuple[int, int]]:
    return list(zip((0, *cuts), (*cuts, count)))


def _slowest(tables: Sequence[_Tables], cuts: Sequence[int]) -> float:
    return max(float(t.seconds[span]) for t, span in zip(tables, _spans(cuts, tables[0].seconds.shape[0])))


def _split(tables: Sequence[Table], *, combine: Callable[[Table, Table], Table]) -> tuple[float, list[int]] | None:
    """The best combined cost of consecutive stages over all positions, and where stages 1.. begin.

    `tables[k][i, j]` is the cost of stage k from position i to before position j; infinite if impossible.
    """
    count = tables[0].shape[0]
    best = tables[0][0, :].copy()  # best[j]: the stages so far hold positions 0..j-1
    best[0] = np.inf
    choices: list[NDArray[np.intp]] = []
    empty = np.arange(count)[None, :] >= np.arange(count + 1)[:, None]
    turned: dict[int, Table] = {}  # [j, i], so that the least over i lies together
    ends = np.arange(count + 1)
    for table in tables[1:]:
        if id(table) not in turned:
            turned[id(table)] = np.where(empty, np.inf, table.T)
        # combined[j, i]: the stages before end at i, this one holds i..j-1
        combined = combine(turned[id(table)], best[None, :count])
        choice = np.argmin(combined, axis=1)
        choices.append(choice)
        best = combined[ends, choice]
    if not np.isfinite(best[count]):
        return None
    cuts: list[int] = []
    end = count
    for choice in reversed(choices):
        end = int(choice[end])
        cuts.append(end)
    return float(best[count]), cuts[::-1]

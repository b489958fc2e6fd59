"""The cut: an exact min-max split of the operations into consecutive stages, by dynamic programming.

Three passes over the same recursion. The first finds the smallest possible time of the slowest stage among the splits
that fit the memory. The second, among the splits no slower than that (within `slack`), the smallest possible memory of
the fullest stage. The third, among those within `slack` of both, the split that sends least. Each objective is a
maximum or a sum over stages, so each pass is exact; the number of positions is the number of operations that do work,
so there is no need for a heuristic.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from lampseg.partition.cost import IntervalCosts, Training

Table = NDArray[np.float64]


def solve(
    costs: IntervalCosts,
    *,
    stages: int,
    training: Training,
    memory: Sequence[float] | None = None,
    slack: float = 0.02,
) -> tuple[int, ...] | None:
    """Finds the cuts, as operation numbers; None if no split fits `memory` (bytes of each stage's device).

    Among the splits whose slowest stage takes at most (1 + slack) times the optimum, and whose fullest stage needs at
    most (1 + slack) times the least memory possible at that speed, the one is returned whose stages receive the fewest
    bytes.
    """
    if stages > costs.count:
        return None
    seconds = costs.seconds(training)
    peaks = [costs.peak_bytes(training, stage=stage, stages=stages) for stage in range(stages)]
    allowed = [np.isfinite(seconds) if memory is None else peak <= memory[k] for k, peak in enumerate(peaks)]
    best = _split([np.where(ok, seconds, np.inf) for ok in allowed], combine=np.maximum)
    if best is None:
        return None
    fast = [ok & (seconds <= best[0] * (1 + slack)) for ok in allowed]
    leanest = _split([np.where(ok, peak, np.inf) for ok, peak in zip(fast, peaks)], combine=np.maximum)
    assert leanest is not None
    lean = [ok & (peak <= leanest[0] * (1 + slack)) for ok, peak in zip(fast, peaks)]
    sends = _split([np.where(ok, costs.received, np.inf) for ok in lean], combine=np.add)
    assert sends is not None
    return tuple(costs.starts[position] for position in sends[1])


def _split(tables: Sequence[Table], *, combine: Callable[[Table, Table], Table]) -> tuple[float, list[int]] | None:
    """The best combined cost of consecutive stages over all positions, and where stages 1.. begin.

    `tables[k][i, j]` is the cost of stage k from position i to before position j; infinite if impossible.
    """
    count = tables[0].shape[0]
    best = tables[0][0, :].copy()  # best[j]: the stages so far hold positions 0..j-1
    best[0] = np.inf
    choices: list[NDArray[np.intp]] = []
    for table in tables[1:]:
        # combined[i, j]: the stages before end at i, this one holds i..j-1
        combined = combine(best[:count, None], np.where(np.isfinite(best[:count, None]), table, np.inf))
        combined[np.arange(count)[:, None] >= np.arange(count + 1)[None, :]] = np.inf
        choices.append(np.argmin(combined, axis=0))
        best = np.min(combined, axis=0)
    if not np.isfinite(best[count]):
        return None
    cuts: list[int] = []
    end = count
    for choice in reversed(choices):
        end = int(choice[end])
        cuts.append(end)
    return float(best[count]), cuts[::-1]

"""Two values of each case, one from each of two runs: how they differ, and whether chance explains it."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lampseg.evaluation.metrics.measures import Better
from lampseg.evaluation.statistics.bootstrap import Interval, bootstrap_interval

ALPHA = 0.05
"""Below it a p value is called significant."""
_EXACT_UP_TO, _ENUMERATED_UP_TO = 50, 15  # pairs: of distinct differences, and with ties among them
_DIGITS = 9  # differences are rounded to: neither a tie nor a zero may hang on how a computer rounds
Method = Literal["exact", "normal approximation", "no difference"]


@dataclass(frozen=True)
class PairedTest:
    """B against A, pair by pair. What needs pairs is None without them."""

    pairs: int
    mean_a: float | None
    mean_b: float | None
    difference: float | None
    """Mean of B - A, in the metric's unit (for errors that are best at 0: of |B| - |A|)."""
    median_difference: float | None
    interval: Interval | None
    """95 %, of the mean difference, by the bootstrap over pairs; None with one pair."""
    wins: int
    """Pairs in which B is better."""
    ties: int
    losses: int
    p: float | None
    """Two-sided, of Wilcoxon's signed-rank test; pairs without a difference are discarded."""
    method: Method | None
    """How p was found."""
    effect: float | None
    """Matched-pairs rank-biserial correlation, -1 to 1: above 0 if B is better (Kerby 2014); 0 without a difference."""

    @property
    def smallest_p(self) -> float:
        """What p cannot fall below with so many pairs that differ."""
        return min(1.0, 2.0 ** (1 - self.wins - self.losses))


def paired_test(a: Sequence[float], b: Sequence[float], *, better: Better = "higher") -> PairedTest:
    """Compares two samples pair by pair; `better` says which direction is B's win.

    Where values are best at 0 (signed errors), their sizes |a| and |b| are compared; the means are those of the sizes.
    """
    assert len(a) == len(b), "one value of each run for every pair"
    if not a:
        return PairedTest(0, None, None, None, None, None, 0, 0, 0, None, None, None)
    first, second = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if better == "nearer to 0":
        first, second = np.abs(first), np.abs(second)
    differences = np.round(second - first, _DIGITS)
    gains = differences if better == "higher" else -differences
    p, method = _wilcoxon(differences[differences != 0])
    return PairedTest(
        pairs=len(a),
        mean_a=float(first.mean()),
        mean_b=float(second.mean()),
        difference=float((second - first).mean()),
        median_difference=float(statistics.median((second - first).tolist())),
        interval=bootstrap_interval((second - first).tolist()),
        wins=int((gains > 0).sum()),
        ties=int((gains == 0).sum()),
        losses=int((gains < 0).sum()),
        p=p,
        method=method,
        effect=_rank_biserial(gains[gains != 0]),
    )


def holm(p_values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Adjusts p values for their number (Holm 1979), so that the chance of any false finding stays below alpha.

    The k-th smallest of m is multiplied by m - k + 1 and is at least the one before it. None stays and does not count.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, index) in enumerate(tested):
        least = max(least, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = least
    return tuple(adjusted)


def _wilcoxon(differences: NDArray[np.float64]) -> tuple[float, Method]:
    """p of differences that are not 0: exact up to 50, up to 15 if some are tied; else the normal approximation."""
    from scipy.stats import permutation_test, rankdata, wilcoxon

    count = len(differences)
    if not count:
        return 1.0, "no difference"
    ranks = rankdata(np.abs(differences))
    if len(np.unique(ranks)) == count:
        if count <= _EXACT_UP_TO:
            return float(wilcoxon(differences, method="exact").pvalue), "exact"
    elif count <= _ENUMERATED_UP_TO:
        # With ties scipy's distribution is that of other ranks: go through all 2^n choices of signs.
        found = permutation_test(
            (np.sign(differences) * ranks,),
            np.sum,
            permutation_type="samples",
            vectorized=True,
            n_resamples=math.inf,
        )
        return float(found.pvalue), "exact"
    return float(wilcoxon(differences, method="asymptotic").pvalue), "normal approximation"


def _rank_biserial(gains: NDArray[np.float64]) -> float:
    """(R+ - R-) / (R+ + R-) of the sums of the ranks of gains and losses."""
    from scipy.stats import rankdata

    if not len(gains):
        return 0.0
    ranks = rankdata(np.abs(gains))
    return float((ranks * np.sign(gains)).sum() / ranks.sum())

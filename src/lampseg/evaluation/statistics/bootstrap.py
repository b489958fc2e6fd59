"""What is said of some values: mean, deviation, median and the bootstrap confidence interval of the mean."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 9999
LEVEL = 0.95
SEED = 0
"""Of the bootstrap: the same values give the same interval."""


@dataclass(frozen=True)
class Interval:
    """Of a confidence level, for a mean."""

    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """Of the values that are there; None where there are too few of them."""

    count: int
    """How many values enter."""
    undefined: int
    """Cases that were scored, but in which the metric is not defined; they do not enter."""
    mean: float | None
    sd: float | None
    """Sample standard deviation (n - 1); from two values on."""
    median: float | None
    interval: Interval | None
    """Of the mean, 95 %, by the bootstrap over cases; from two values on."""


def summarise(values: Sequence[float | None], *, undefined: int = 0) -> Summary:
    """Summary of the values that are not None."""
    there = [value for value in values if value is not None]
    return Summary(
        count=len(there),
        undefined=undefined,
        mean=statistics.fmean(there) if there else None,
        sd=statistics.stdev(there) if len(there) > 1 else None,
        median=statistics.median(there) if there else None,
        interval=bootstrap_interval(there),
    )


def bootstrap_interval(values: Sequence[float], *, level: float = LEVEL, seed: int = SEED) -> Interval | None:
    """Confidence interval of the mean by the bootstrap: bias-corrected and accelerated (Efron 1987), by scipy.

    None with fewer than two values: one says nothing of how they vary. Equal values give that value twice. With fewer
    than about ten values the interval tends to be too short.
    """
    from scipy.stats import bootstrap

    array = np.asarray(values, np.float64)
    if array.size < 2:
        return None
    if np.ptp(array) <= 1e-12 * max(1.0, float(np.abs(array).max())):  # BCa divides by how the means vary
        mean = float(array.mean())
        return Interval(mean, mean)
    rng = np.random.default_rng(seed)
    found = bootstrap(
        (array,), np.mean, n_resamples=RESAMPLES, batch=1000, confidence_level=level, method="BCa", rng=rng
    )
    low, high = (float(end) for end in found.confidence_interval)
    assert math.isfinite(low + high), "values that differ have an interval"
    return Interval(low, high)

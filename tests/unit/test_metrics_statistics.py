"""Summaries, bootstrap intervals, the paired test and Holm's correction: by hand, and against scipy."""

import itertools
import math
import statistics

import numpy as np
import pytest
from scipy.stats import bootstrap, rankdata, wilcoxon

from lampseg.evaluation import Interval, bootstrap_interval, holm, paired_test, summarise


def normal(count: int, *, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).normal(0.8, 0.1, count).tolist()


def test_summary_leaves_out_what_is_not_there() -> None:
    found = summarise([0.5, None, 0.9, 0.7, None], undefined=1)
    assert (found.count, found.undefined) == (3, 1)
    assert (found.mean, found.sd, found.median) == pytest.approx((0.7, 0.2, 0.7))
    assert found.interval is not None


def test_summary_of_nothing_and_of_one() -> None:
    empty, one = summarise([None]), summarise([0.3])
    assert (empty.count, empty.mean, empty.sd, empty.median, empty.interval) == (0, None, None, None, None)
    assert (one.count, one.mean, one.sd, one.median, one.interval) == (1, 0.3, None, 0.3, None)


def test_the_interval_is_the_same_each_time_and_that_of_another_seed_is_near() -> None:
    values = normal(25)
    first = bootstrap_interval(values)
    assert first == bootstrap_interval(values)
    other = bootstrap_interval(values, seed=1)
    assert first is not None
    assert other is not None
    assert first != other
    assert (first.low, first.high) == pytest.approx((other.low, other.high), abs=0.003)


def test_the_interval_is_scipys_and_near_that_of_the_normal_distribution() -> None:
    values = normal(40)
    found = bootstrap_interval(values)
    assert found is not None
    expected = bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=5).confidence_interval
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.003)
    half = 1.96 * statistics.stdev(values) / math.sqrt(40)
    mean = statistics.fmean(values)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), abs=0.006)
    narrow = bootstrap_interval(values, level=0.5)
    assert narrow is not None
    assert found.low < narrow.low < narrow.high < found.high


def test_the_interval_holds_the_true_mean_in_about_95_of_100_samples() -> None:
    held = 0
    for seed in range(200):
        found = bootstrap_interval(normal(30, seed=seed))
        assert found is not None
        held += found.low <= 0.8 <= found.high
    assert 0.90 <= held / 200 <= 0.985


@pytest.mark.parametrize("value", [0.0, 0.7, -3e5, 1e-9])
def test_equal_values_have_an_interval_of_no_width(value: float) -> None:
    found = bootstrap_interval([value] * 5)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((value, value))


@pytest.mark.parametrize(
    "values", [[0.5, 0.6], [0.0] * 9 + [1.0], [1.0] * 50 + [0.0], [1e-6, 1.0, 1e6], [0.1, 0.1 + 1e-9]]
)
def test_odd_samples_have_finite_intervals_within_their_range(values: list[float]) -> None:
    found = bootstrap_interval(values)
    assert found is not None
    assert min(values) - 1e-12 <= found.low <= statistics.fmean(values) <= found.high <= max(values) + 1e-12


def signs_by_hand(differences: list[float]) -> float:
    """Two-sided p over all choices of signs, of differences that are not 0."""
    ranks = rankdata(np.abs(differences))
    observed = abs((np.sign(differences) * ranks).sum())
    sums = [abs(np.dot(signs, ranks)) for signs in itertools.product((-1, 1), repeat=len(ranks))]
    return sum(total >= observed - 1e-9 for total in sums) / len(sums)


def test_a_comparison_by_hand() -> None:
    """Differences 0.1, 0.2, 0.3, -0.05, 0: ranks 2, 3, 4 and 1."""
    a = [0.5, 0.5, 0.5, 0.5, 0.5]
    found = paired_test(a, [0.6, 0.7, 0.8, 0.45, 0.5])
    assert (found.pairs, found.wins, found.ties, found.losses) == (5, 3, 1, 1)
    assert (found.mean_a, found.mean_b, found.difference) == pytest.approx((0.5, 0.61, 0.11))
    assert found.median_difference == pytest.approx(0.1)
    assert found.effect == pytest.approx((9 - 1) / 10)
    assert (found.p, found.method) == (pytest.approx(4 / 16), "exact")  # rank sums 0, 1, 9, 10 of 16 choices of signs
    assert found.smallest_p == pytest.approx(2 / 16)
    assert found.interval is not None
    assert found.interval.low < 0.11 < found.interval.high


@pytest.mark.parametrize(("better", "wins", "sign"), [("higher", 3, 1), ("lower", 1, -1), ("nearer to 0", 1, -1)])
def test_which_way_is_better(better: str, wins: int, sign: int) -> None:
    found = paired_test([1.0, 1.0, 1.0, 1.0], [2.0, 3.0, 4.5, 0.5], better=better)
    assert (found.wins, found.losses) == (wins, 4 - wins)
    assert found.difference == pytest.approx(1.5)
    assert found.effect == pytest.approx(sign * 0.8)


def test_signed_errors_are_compared_by_their_size() -> None:
    found = paired_test([-3.0, 2.0], [1.0, -1.0], better="nearer to 0")
    assert (found.mean_a, found.mean_b, found.wins) == (2.5, 1.0, 2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("digits", [1, 6])
def test_p_is_exact_with_and_without_ties(seed: int, digits: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.random((2, 11)).round(digits)
    differences = [d for d in (b - a).round(9).tolist() if d]
    found = paired_test(a.tolist(), b.tolist())
    assert (found.p, found.method) == (pytest.approx(signs_by_hand(differences)), "exact")


def test_p_of_many_pairs() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 50))
    assert paired_test(a.tolist(), b.tolist()).method == "exact"
    a, b = rng.random((2, 80))
    found = paired_test(a.tolist(), (b + 0.1).tolist())
    assert found.method == "normal approximation"
    assert found.p == pytest.approx(wilcoxon(b + 0.1 - a).pvalue)
    tied = paired_test([0.0] * 20, [0.1, 0.1, -0.1, 0.2] * 5)
    assert tied.method == "normal approximation"


def test_rounding_makes_neither_ties_nor_differences() -> None:
    """0.1 + 0.2 is not 0.3 to a computer; and 0.3 - 0.2 not 0.2 - 0.1."""
    found = paired_test([0.3, 0.1, 0.2], [0.1 + 0.2, 0.2, 0.3])
    assert (found.ties, found.wins, found.effect) == (1, 2, 1.0)
    assert found.p == pytest.approx(0.5)


def test_no_difference_at_all() -> None:
    found = paired_test([0.5, 0.6], [0.5, 0.6])
    assert (found.p, found.method, found.effect, found.ties) == (1.0, "no difference", 0.0, 2)
    assert found.interval == Interval(0.0, 0.0)


def test_one_pair_and_none() -> None:
    one, none = paired_test([0.5], [0.7]), paired_test([], [])
    assert (one.pairs, one.p, one.interval, one.effect) == (1, 1.0, None, 1.0)
    assert (none.pairs, none.p, none.difference, none.effect, none.method) == (0, None, None, None, None)


def test_holm_by_hand() -> None:
    """Sorted: 0.01 x 4, 0.02 x 3, 0.03 x 2 (not below the one before), 0.6 x 1."""
    assert holm([0.03, 0.01, None, 0.6, 0.02]) == pytest.approx((0.06, 0.04, None, 0.6, 0.06))
    assert holm([0.5, 0.9]) == (1.0, 1.0)
    assert holm([None]) == (None,)

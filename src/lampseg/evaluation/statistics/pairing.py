"""Two evaluations of the same cases against each other: paired tests per class and over the cases' means."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from lampseg.errors import UserError
from lampseg.evaluation.metrics.measures import METRICS, Metric
from lampseg.evaluation.scores import CaseDice, Evaluation
from lampseg.evaluation.statistics.paired import PairedTest, holm, paired_test
from lampseg.evaluation.tables import few

_SAME_VOLUME = 1e-6  # relative: of the truths of one case in both evaluations


@dataclass(frozen=True)
class PairedClass:
    """One class in both runs."""

    organ: str
    test: PairedTest
    p_holm: float | None
    """`test.p`, adjusted for the number of classes."""
    only_a: int
    """Shared cases in which only A has a value, as where B found nothing and there is no distance; no pair."""
    only_b: int


@dataclass(frozen=True)
class PairedComparison:
    """B against A, by one metric. Build it with `compare_evaluations`."""

    metric: Metric
    a: str
    b: str
    """What the runs are called."""
    cases: int
    """Scored by both."""
    overall: PairedTest
    """Of the cases' means over the classes that have a value in both."""
    classes: tuple[PairedClass, ...]
    cases_only_a: tuple[str, ...]
    cases_only_b: tuple[str, ...]
    classes_only_a: tuple[str, ...]
    classes_only_b: tuple[str, ...]
    other_truths: tuple[str, ...]
    """Shared cases in which the true volume of a class is not the same: they were not scored against one truth."""


def compare_evaluations(
    a: Evaluation, b: Evaluation, *, metric: str = "dice", names: tuple[str, str] = ("A", "B")
) -> PairedComparison:
    """Pairs two evaluations by case and class and tests whether B differs from A.

    A pair is a case (and class) with a value in both; others are counted, not compared.

    Raises:
        UserError: no case or no class in common, the metric was not measured in one of them, or the surface Dice at
            other tolerances.
    """
    assert metric in METRICS
    for evaluation, name in ((a, names[0]), (b, names[1])):
        if metric not in evaluation.metrics:
            raise UserError(
                f"{name}: {metric} was not measured (there is {', '.join(evaluation.metrics)}); run "
                f"`lampseg evaluate --metrics {metric}` again"
            )
    organs = tuple(organ for organ in a.organs if organ in b.organs)
    first, second = ({case.case: case for case in evaluation.cases} for evaluation in (a, b))
    shared = tuple(case for case in first if case in second)
    if not shared or not organs:
        what, theirs = ("case", (tuple(first), tuple(second))) if not shared else ("class", (a.organs, b.organs))
        raise UserError(
            f"{names[0]} and {names[1]} share no {what}, so nothing can be paired: there are "
            f"{few(list(theirs[0])) or 'none'}, and {few(list(theirs[1])) or 'none'}"
        )
    _check_tolerances(a, b, organs, metric=metric, names=names)
    pairs = [(_by_organ(a, first[case], metric), _by_organ(b, second[case], metric)) for case in shared]
    tested = [_class(organ, pairs, METRICS[metric]) for organ in organs]
    adjusted = holm([test.p for test, _, _ in tested])
    return PairedComparison(
        metric=METRICS[metric],
        a=names[0],
        b=names[1],
        cases=len(shared),
        overall=_overall(organs, pairs, METRICS[metric]),
        classes=tuple(PairedClass(o, test, p, *alone) for o, (test, *alone), p in zip(organs, tested, adjusted)),
        cases_only_a=tuple(case for case in first if case not in second),
        cases_only_b=tuple(case for case in second if case not in first),
        classes_only_a=tuple(organ for organ in a.organs if organ not in organs),
        classes_only_b=tuple(organ for organ in b.organs if organ not in organs),
        other_truths=tuple(case for case in shared if _other_truth(a, b, first[case], second[case], organs)),
    )


Values = dict[str, float | None]


def _by_organ(evaluation: Evaluation, case: CaseDice, metric: str) -> Values:
    return dict(zip(evaluation.organs, case.values(metric), strict=True))


def _class(organ: str, pairs: Sequence[tuple[Values, Values]], metric: Metric) -> tuple[PairedTest, int, int]:
    """The test, and in how many cases only A, only B has a value."""
    values = [(a[organ], b[organ]) for a, b in pairs]
    both = [(x, y) for x, y in values if x is not None and y is not None]
    test = paired_test([x for x, _ in both], [y for _, y in both], better=metric.better)
    return (
        test,
        sum(x is not None and y is None for x, y in values),
        sum(x is None and y is not None for x, y in values),
    )


def _overall(organs: Sequence[str], pairs: Sequence[tuple[Values, Values]], metric: Metric) -> PairedTest:
    """Each case's means are over the same classes in both runs. Of signed errors the sizes are averaged."""
    sizes = metric.better == "nearer to 0"
    means = []
    for a, b in pairs:
        both = [(x, y) for x, y in ((a[organ], b[organ]) for organ in organs) if x is not None and y is not None]
        if both:
            one, other = ([abs(v) if sizes else v for v in side] for side in zip(*both))
            means.append((statistics.fmean(one), statistics.fmean(other)))
    return paired_test([x for x, _ in means], [y for _, y in means], better=metric.better)


def _check_tolerances(
    a: Evaluation, b: Evaluation, organs: Sequence[str], *, metric: str, names: tuple[str, str]
) -> None:
    if metric != "nsd":
        return
    for organ in organs:
        one, other = (dict(zip(e.organs, e.tolerance_mm)).get(organ) for e in (a, b))
        if one != other:
            raise UserError(
                f"{names[0]} and {names[1]}: the surface Dice of {organ} was measured at {one} and at {other} mm; "
                "evaluate both with the same --tolerance"
            )


def _other_truth(a: Evaluation, b: Evaluation, one: CaseDice, other: CaseDice, organs: Sequence[str]) -> bool:
    first, second = dict(zip(a.organs, one.scores)), dict(zip(b.organs, other.scores))
    if not first or not second:
        return False
    for organ in organs:
        x, y = first[organ].truth_ml, second[organ].truth_ml
        if (x is None) != (y is None):
            return True
        if x is not None and y is not None and abs(x - y) > _SAME_VOLUME * max(x, y):
            return True
    return False

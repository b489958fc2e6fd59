"""A paired comparison as sentences that follow from its numbers."""

from lampseg.evaluation.metrics.measures import Metric
from lampseg.evaluation.statistics.bootstrap import LEVEL
from lampseg.evaluation.statistics.paired import ALPHA
from lampseg.evaluation.statistics.pairing import PairedComparison
from lampseg.evaluation.tables import ABSENT, counted, few

_LEAST_P = 0.0001  # smaller ones are written as "< 0.0001"


def paired_sentence(comparison: PairedComparison) -> str:
    """What the comparison shows over the cases' means, and in which classes."""
    test, metric = comparison.overall, comparison.metric
    if test.difference is None or test.p is None:
        return f"{comparison.a} and {comparison.b} have no case in which both have a {metric.title}: nothing is shown."
    return " ".join([_headline(comparison), *_classes(comparison), *_warnings(comparison)])


def _headline(comparison: PairedComparison) -> str:
    test, metric = comparison.overall, comparison.metric
    assert test.difference is not None
    assert test.p is not None
    assert test.effect is not None
    subject = f"{comparison.b}'s mean {_name(metric)}"
    if test.method == "no difference":
        return f"{subject} equals {comparison.a}'s in each of {counted(test.pairs, 'case')}."
    direction = "higher" if test.difference > 0 else "lower"
    if round(test.difference, 9) == 0:
        text = f"{subject} equals {comparison.a}'s"
    else:
        text = f"{subject} is {direction} than {comparison.a}'s by {_amount(metric, abs(test.difference))}"
    interval = test.interval
    if interval is not None:
        ends = f"{_amount(metric, interval.low, unit=False)} to {_amount(metric, interval.high)}"
        text += f" ({LEVEL:.0%} CI of the difference {ends})"
    text += (
        f", {_p_phrase(test.p)} (Wilcoxon signed-rank, two-sided, {test.method}), rank-biserial correlation "
        f"{test.effect:+.2f}, n = {counted(test.pairs, 'case')}: {comparison.b} is better in {test.wins}, equal in "
        f"{test.ties}, worse in {test.losses}."
    )
    return f"{text} {_verdict(comparison)}"


def _verdict(comparison: PairedComparison) -> str:
    test = comparison.overall
    assert test.p is not None
    assert test.effect is not None
    if test.p < ALPHA:
        word = "better" if test.effect > 0 else "worse"
        text = f"At the level {ALPHA:g}, {comparison.b} is {word} than {comparison.a}"
        rises = (test.difference or 0.0) > 0
        agree = (test.effect > 0) == (rises if comparison.metric.better == "higher" else not rises)
        return f"{text}." if agree else f"{text} by the ranks of the differences, while few large ones turn the mean."
    text = f"At the level {ALPHA:g}, no difference between them is shown"
    if test.smallest_p >= ALPHA:
        return f"{text}, nor could it be: with so few pairs that differ, p is never below {p_text(test.smallest_p)}."
    return f"{text}; that is no proof that there is none."


def _classes(comparison: PairedComparison) -> list[str]:
    if len(comparison.classes) < 2:
        return []
    tested = [row for row in comparison.classes if row.p_holm is not None]
    shown = [row for row in tested if (row.p_holm or 0.0) < ALPHA]
    better, worse = ([row.organ for row in shown if sign * (row.test.effect or 0.0) > 0] for sign in (1, -1))
    return [
        f"Class by class (p adjusted by Holm's method, m = {len(tested)}), "
        f"{comparison.b} is better in {', '.join(better) or 'none'}, and worse in {', '.join(worse) or 'none'}."
    ]


def _warnings(comparison: PairedComparison) -> list[str]:
    texts = []
    only_a, only_b = (sum(getattr(row, side) for row in comparison.classes) for side in ("only_a", "only_b"))
    if only_a or only_b:
        texts.append(
            f"Left out, as only one of the two has a value there (class by class): {only_a} of {comparison.a} alone, "
            f"{only_b} of {comparison.b} alone."
        )
    for name, cases in ((comparison.a, comparison.cases_only_a), (comparison.b, comparison.cases_only_b)):
        if cases:
            texts.append(f"Only {name} scored {counted(len(cases), 'case')}, not compared: {few(list(cases))}.")
    for name, organs in ((comparison.a, comparison.classes_only_a), (comparison.b, comparison.classes_only_b)):
        if organs:
            texts.append(f"Only {name} has {few(list(organs))}.")
    if comparison.other_truths:
        texts.append(
            f"Caution: the true volumes differ between the two in {few(list(comparison.other_truths))}; they were "
            "not scored against the same labels."
        )
    return texts


def _p_phrase(p: float) -> str:
    return f"p = {p_text(p)}" if p >= _LEAST_P else f"p {p_text(p)}"


def p_text(p: float | None) -> str:
    """A p value to three significant digits."""
    if p is None:
        return ABSENT
    return f"{p:.3g}" if p >= _LEAST_P else f"< {_LEAST_P}"


def _name(metric: Metric) -> str:
    return f"size of the {metric.title.lower()}" if metric.better == "nearer to 0" else metric.title


def _amount(metric: Metric, value: float, *, unit: bool = True) -> str:
    """In mm or ml; fractions in points, hundredths."""
    number, digits = (value, 2) if metric.unit else (100 * value, 1)
    text = f"{number:.{digits}f}"
    if number and not float(text):  # too small for so few digits
        text = f"{number:.2g}"
    return f"{text} {metric.unit or 'points'}" if unit else text

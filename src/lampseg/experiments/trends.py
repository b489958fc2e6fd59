"""Whether Dice rises with the input's and with the network's size, in words that follow from the results."""

from collections.abc import Sequence
from itertools import pairwise

from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.statistics.paired import paired_test
from lampseg.experiments.definition import Row
from lampseg.experiments.results import AVERAGE, Result


def trends(results: Sequence[Result]) -> list[str]:
    """A sentence for each network and direction that has at least two rows, with every figure.

    The first and the last row are tested against each other, test case by test case.
    """
    done = {result.row: result for result in results if result.dice().get(AVERAGE) is not None}
    lines = []
    for experiment in dict.fromkeys(row.experiment for row in done):
        given = [(row.input.name, done[row]) for row in experiment.rows if row in done]
        if len(given) > 1:
            lines.append(f"{experiment.paper_name}, larger inputs: {_said(given)}")
    for network, name in dict.fromkeys((row.experiment.network, row.input.name) for row in done):
        given = [(row.experiment.paper_name, found) for row, found in done.items() if _is(row, network, name)]
        if len(given) > 1:
            lines.append(f"input {name}, larger networks: {_said(given)}")
    return lines


def _is(row: Row, network: str, name: str) -> bool:
    return (row.experiment.network, row.input.name) == (network, name)


def _said(given: Sequence[tuple[str, Result]]) -> str:
    shown = [(name, value) for name, result in given if (value := result.dice()[AVERAGE]) is not None]
    values = [value for _, value in shown]
    steps = [after - before for before, after in pairwise(values)]
    if all(step > 0 for step in steps):
        verdict = "rises at every step"
    elif values[-1] > values[0]:
        verdict = "is higher at the end, but does not rise at every step"
    else:
        verdict = "does not rise"
    listed = ", ".join(f"{name} {value:.2f} %" for name, value in shown)
    first, last = given[0][1].evaluation, given[-1][1].evaluation
    assert first is not None
    assert last is not None
    return f"average Dice {verdict} ({listed}). From the first to the last: {tested(first, last)}."


def tested(first: Evaluation, last: Evaluation) -> str:
    """The paired difference of the cases' average Dice, in points, with its interval and Wilcoxon's p."""
    before = {case.case: case.average for case in first.cases}
    pairs = [
        (100 * old, 100 * new)
        for case in last.cases
        if (old := before.get(case.case)) is not None and (new := case.average) is not None
    ]
    test = paired_test([old for old, _ in pairs], [new for _, new in pairs])
    if test.difference is None or test.p is None:
        return "no case in common"
    interval = ""
    if test.interval is not None:
        interval = f", 95 % interval {test.interval.low:+.2f} to {test.interval.high:+.2f}"
    return f"{test.difference:+.2f} points{interval}, p = {test.p:.3g} (Wilcoxon, {test.pairs} cases)"

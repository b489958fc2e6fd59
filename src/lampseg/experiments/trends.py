"""Whether Dice rises with the input's and with the network's size, in words that follow from the results."""

from collections.abc import Sequence
from itertools import pairwise

from lampseg.experiments.results import AVERAGE, Result


def trends(results: Sequence[Result]) -> list[str]:
    """A sentence for each network and direction that has at least two rows, with every figure."""
    done = {result.row: average for result in results if (average := result.dice().get(AVERAGE)) is not None}
    lines = []
    experiments = list(dict.fromkeys(row.experiment for row in done))
    for experiment in experiments:
        given = [(row.input.name, done[row]) for row in experiment.rows if row in done]
        if len(given) > 1:
            lines.append(f"{experiment.paper_name}, larger inputs: {_said(given)}")
    rows = {(row.experiment.network, row.input.name): row for row in done}
    for network, name in rows:
        given = [
            (row.experiment.paper_name, done[row])
            for row in done
            if (row.experiment.network, row.input.name) == (network, name)
        ]
        if len(given) > 1:
            lines.append(f"input {name}, larger networks: {_said(given)}")
    return lines


def _said(given: Sequence[tuple[str, float]]) -> str:
    values = [value for _, value in given]
    steps = [after - before for before, after in pairwise(values)]
    if all(step > 0 for step in steps):
        verdict = "rises at every step"
    elif values[-1] > values[0]:
        verdict = "is higher at the end, but does not rise at every step"
    else:
        verdict = "does not rise"
    listed = ", ".join(f"{name} {value:.2f} %" for name, value in given)
    return f"average Dice {verdict} ({listed})."

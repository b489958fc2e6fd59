"""Figure 1 of the paper, Dice against seconds, with the paper's points and ours."""

from collections.abc import Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lampseg.evaluation.report.figures import COLOURS
from lampseg.experiments.definition import Study
from lampseg.experiments.paper_tables import paper_dice, paper_seconds
from lampseg.experiments.results import AVERAGE, Result

_MARKERS = "o^s"
"""By the input, the smallest first."""


def dice_against_seconds(study: Study, results: Sequence[Result]) -> Figure:
    """Left the paper's rows, right ours: average Dice (%) against seconds for one test image.

    A colour for each network, larger marks for more filters, a shape for each input.
    """
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    paper, ours = figure.subplots(1, 2)
    dice, seconds = paper_dice(study), paper_seconds(study)
    for result in (Result(row) for experiment in study.experiments for row in experiment.rows):
        key, timed = result.row.key, result.row.seconds_key
        if key in dice and timed in seconds:
            _mark(paper, study, result, seconds[timed].mean, dice[key][AVERAGE])
    for result in results:
        average = result.dice().get(AVERAGE)
        if average is not None and result.seconds:
            _mark(ours, study, result, fmean(result.seconds), average)
    for axes, title in ((paper, "the paper"), (ours, "ours")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("seconds for one test image")
        axes.set_ylabel("average Dice (%)")
        axes.grid(color="#d0d0d0", linewidth=0.5)
        axes.set_xlim(left=0)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=_legend(study), loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def _mark(axes: Axes, study: Study, result: Result, x: float, y: float) -> None:
    experiment = result.row.experiment
    axes.plot(
        x,
        y,
        _MARKERS[result.row.stage],
        color=COLOURS[list(study.networks).index(experiment.network)],
        markersize=5 + 3 * study.filters.index(experiment.filters),
        alpha=0.8,
    )


def _legend(study: Study) -> list[Line2D]:
    networks = [
        Line2D([], [], marker="o", linestyle="", color=COLOURS[n], label=name)
        for n, name in enumerate(study.networks.values())
    ]
    inputs = [
        Line2D([], [], marker=_MARKERS[n], linestyle="", color="#555555", label=f"input {given.name}")
        for n, given in enumerate(study.inputs)
    ]
    widths = [
        Line2D([], [], marker="o", linestyle="", color="#555555", markersize=5 + 3 * n, label=f"{count} filters")
        for n, count in enumerate(study.filters)
    ]
    return [*networks, *inputs, *widths]

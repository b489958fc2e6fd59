"""Box plots of the scores of every case, organ by organ."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lampseg.evaluation.report.figures import COLOURS, plain
from lampseg.evaluation.report.scores import Metric, ReportScores

_ROOM = 0.8
"""Of the distance between organs that their boxes fill."""


def box_plot(groups: Sequence[tuple[str, ReportScores]], metric: Metric) -> Figure:
    """A box per organ (and per method, if there are several): median, quartiles, whiskers to 1.5 IQR.

    Every case is a dot as well: with few cases, boxes alone would hide how few they are.
    """
    organs = groups[0][1].organs
    assert all(scores.organs == organs for _, scores in groups), "all groups score the same organs"
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes: Axes = figure.subplots()
    width = _ROOM / len(groups)
    for g, (_, scores) in enumerate(groups):
        colour = COLOURS[g % len(COLOURS)]
        for i, organ in enumerate(organs):
            values = scores.of_organ(metric.key, organ)
            if not values:
                continue  # an organ scored in no case has no box
            centre = i - _ROOM / 2 + width * (g + 0.5)
            drawn = axes.boxplot(
                [values],
                positions=[centre],
                widths=0.7 * width,
                patch_artist=True,
                showfliers=False,
                medianprops={"color": "black", "linewidth": 1.4},
                whiskerprops={"color": "#555555"},
                capprops={"color": "#555555"},
                manage_ticks=False,
            )
            drawn["boxes"][0].set(facecolor=colour, alpha=0.45, edgecolor="#555555")
            axes.plot(centre + _spread(len(values), 0.25 * width), values, ".", color=colour, markersize=5)
    for i in range(1, len(organs)):
        axes.axvline(i - 0.5, color="#e4e4e4", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(organs)), map(plain, organs), rotation=20, ha="right", fontsize=8)
    axes.set_xlim(-0.55, len(organs) - 0.45)
    axes.set_ylabel(plain(metric.heading))
    axes.grid(axis="y", color="#d0d0d0", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(groups) > 1:
        handles = [
            Patch(facecolor=COLOURS[g % len(COLOURS)], alpha=0.6, label=plain(label))
            for g, (label, _) in enumerate(groups)
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=min(3, len(groups)), frameon=False, fontsize=8)
    return figure


def _spread(count: int, half: float) -> np.ndarray:
    """Sideways places of the dots, so that equal values do not hide each other; always the same."""
    return half * (2 * (np.arange(count) * 0.618034 % 1.0) - 1) if count > 1 else np.zeros(count)

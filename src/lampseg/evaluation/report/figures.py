"""The report's charts: training curves, and Dice against seconds."""

import base64
import io
from collections.abc import Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.ndimage import uniform_filter1d

from lampseg.evaluation.report.comparison import Comparison
from lampseg.evaluation.report.run_folder import RunFolder

# Okabe and Ito's colours, told apart with any colour vision and, mostly, in grey print.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
_MARKERS = "osD^vP*X"
_BANDS = ("#eef2f6", "#ffffff")


def data_uri(figure: Figure, *, kind: Literal["svg", "png"] = "svg") -> str:
    """The figure as a `data:` address for an HTML page; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    # A fixed salt and no date, so that an unchanged report stays the same file.
    with mpl.rc_context({"svg.hashsalt": "lampseg"}):
        figure.savefig(buffer, format=kind, dpi=130, metadata={"Date": None} if kind == "svg" else None)
    mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
    return f"data:{mime};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def plain(name: str) -> str:
    """A name for a figure's label: no `$` starts a formula, no leading `_` hides it from the legend."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def training_curves(run: RunFolder) -> Figure:
    """Loss of every step with its moving average, above the validation Dice; bands are curriculum stages."""
    with_dice = bool(run.validations)
    figure = Figure(figsize=(9, 5.4 if with_dice else 3.4), layout="constrained")
    rows = figure.subplots(2 if with_dice else 1, 1, sharex=True, squeeze=False)[:, 0]
    loss: Axes = rows[0]
    for stage in sorted({s.stage for s in run.steps}):
        shown = [(s.step, s.loss) for s in run.steps if s.stage == stage and np.isfinite(s.loss)]
        if not shown:
            continue
        x, y = np.asarray(shown).T
        first = not loss.lines
        loss.plot(x, y, color=COLOURS[4], linewidth=0.7, label="loss of a step" if first else None)
        # Within the stage only: the loss jumps where the patch changes.
        width = max(1, min(50, len(y) // 8))
        mean = uniform_filter1d(y, width, mode="nearest")
        loss.plot(x, mean, color=COLOURS[0], linewidth=1.8, label="moving average" if first else None)
    loss.set_ylabel("loss")
    if loss.lines:
        loss.legend(loc="upper right", frameon=False, fontsize=8)
    for axes in rows:
        _stage_bands(axes, run, named=axes is loss)
        axes.grid(axis="y", color="#d0d0d0", linewidth=0.5)
    if with_dice:
        _validation_points(rows[1], run)
    rows[-1].set_xlabel("optimizer step")
    return figure


def _stage_bands(axes: Axes, run: RunFolder, *, named: bool) -> None:
    for stage in sorted({s.stage for s in run.steps}):
        steps = [s.step for s in run.steps if s.stage == stage]
        low, high = min(steps) - 0.5, max(steps) + 0.5
        axes.axvspan(low, high, color=_BANDS[stage % 2], zorder=0, linewidth=0)
        if named:
            axes.text(
                (low + high) / 2,
                1.02,
                run.patch_text(stage),
                transform=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                fontsize=9,
            )
    if run.steps:
        axes.set_xlim(run.steps[0].step - 0.5, run.steps[-1].step + 0.5)


def _validation_points(axes: Axes, run: RunFolder) -> None:
    names = list(dict.fromkeys(name for v in run.validations for name in v.dice))
    for i, name in enumerate(names):
        points = [(v.step, d) for v in run.validations if (d := v.dice.get(name)) is not None]
        if points:
            x, y = np.asarray(points).T
            axes.plot(x, y, ".-", color=f"C{i % 10}", linewidth=0.6, markersize=3, label=plain(name), alpha=0.8)
    mean = [(v.step, v.score) for v in run.validations if v.score is not None]
    if mean:
        x, y = np.asarray(mean).T
        axes.plot(x, y, "o-", color="black", linewidth=1.4, markersize=5, label="mean")
    if run.best is not None and run.best.score is not None:
        axes.plot(run.best.step, run.best.score, "*", color=COLOURS[5], markersize=14, label="selected", zorder=5)
    axes.set_ylim(-0.02, 1.02)
    axes.set_ylabel("validation Dice")
    if axes.lines:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=7)


def dice_against_seconds(comparison: Comparison) -> Figure:
    """Average Dice (%) of each method against its seconds per volume (Figure 1 of the paper).

    Rows of one `series` share a colour and a line, those of one `input` a marker; a row without a series has its own.
    """
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    rows = [(row, dice) for row in comparison.rows if (dice := row.evaluation.average) is not None]
    colours = list(dict.fromkeys(row.series or row.label for row in comparison.rows))
    shapes = list(dict.fromkeys(row.input or row.label for row in comparison.rows))
    for series in dict.fromkeys(row.series for row, _ in rows if row.series):
        line = [(row.seconds_per_volume, 100 * dice) for row, dice in rows if row.series == series]
        axes.plot(*zip(*line), "-", color=COLOURS[colours.index(series) % len(COLOURS)], linewidth=1.0, alpha=0.6)
    for row, dice in rows:
        axes.plot(
            row.seconds_per_volume,
            100 * dice,
            _MARKERS[shapes.index(row.input or row.label) % len(_MARKERS)],
            color=COLOURS[colours.index(row.series or row.label) % len(COLOURS)],
            markersize=9,
            label=plain(row.label),
        )
    seconds: Sequence[float] = [row.seconds_per_volume for row in comparison.rows]
    axes.set_xlim(0, 1.1 * max(seconds) or 1.0)
    if rows:
        drawn = [100 * dice for _, dice in rows]
        room = max(2.0, 0.15 * (max(drawn) - min(drawn)))
        axes.set_ylim(max(0.0, min(drawn) - room), min(100.0, max(drawn) + room))
    axes.set_xlabel("inference time per volume (s)")
    axes.set_ylabel("average Dice (%)")
    axes.grid(color="#d0d0d0", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if len(rows) > 6:
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8)
    else:
        _legend_above(figure, len(rows))
    return figure


def _legend_above(figure: Figure, entries: int) -> None:
    if entries:
        figure.legend(loc="outside upper center", ncols=min(2, entries), frameon=False, fontsize=8)

"""The report's drawings of a plan: what each device holds, and the timetable of a step."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from lampseg.evaluation.report.figures import COLOURS, plain
from lampseg.evaluation.report.plan_check import PlanCheck, shares
from lampseg.evaluation.tables import byte_unit
from lampseg.partition.plan import Plan, Stage

FORWARD, BACKWARD = "#0072B2", "#D55E00"
NUMBERED = 150
"""With more passes than these, the micro-batches' numbers would not be readable."""


def memory_picture(check: PlanCheck) -> Figure:
    """Bytes of each device in layers, with the measured peak of its tensors, and its share of the computing time."""
    loads = check.plan.devices
    count = len(loads)
    figure = Figure(figsize=(9, min(1.6 + 0.62 * count, 14)), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 1.6))
    y = np.arange(count)
    measured = [np.nan if n is None else n for n in check.tensor_bytes]
    scale, unit = byte_unit(max([*(load.peak_bytes for load in loads), *(n for n in measured if np.isfinite(n))]))
    base = np.zeros(count)
    for colour, name in zip(COLOURS, loads[0].parts()):
        width = np.asarray([load.parts()[name] for load in loads]) / scale
        left.barh(y, width, left=base, height=0.6, color=colour, label=name, edgecolor="white", linewidth=0.5)
        base += width
    predicted = [load.tensor_bytes / scale for load in loads]
    left.vlines(predicted, y - 0.38, y + 0.38, color="black", linewidth=2, label="tensors, predicted")
    if np.isfinite(measured).any():
        left.plot(np.asarray(measured) / scale, y, "D", color="black", markersize=5, label="tensors, measured")
    left.set_yticks(y, [_device_text(check.plan, load.index) for load in loads], fontsize=8)
    left.set_xlabel(f"memory ({unit})")
    left.set_xlim(left=0)
    _draw_shares(right, check)
    for axes in (left, right):
        axes.set_ylim(count - 0.5, -0.5)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def _device_text(plan: Plan, device: int) -> str:
    mine = [stage for stage in plan.stages if stage.device == device // plan.choices.sharing]
    return "\n".join([f"device {device}", *(plain(modules_text(stage, limit=30)) for stage in mine[:2])])


def _draw_shares(axes: Axes, check: PlanCheck) -> None:
    y = np.arange(len(check.plan.devices))
    series = [("share of time, predicted", shares([load.busy_seconds for load in check.plan.devices]), "#777777")]
    if None not in (measured := shares(check.busy_seconds)):
        series.append(("share of time, measured", measured, "#222222"))
    height = 0.6 / len(series)
    for i, (name, values, colour) in enumerate(series):
        numbers = [100 * (value or 0.0) for value in values]
        bars = axes.barh(y + (i - (len(series) - 1) / 2) * height, numbers, height=height, color=colour, label=name)
        axes.bar_label(bars, fmt="%.0f %%", padding=2, fontsize=8)
    axes.set_yticks([])
    axes.set_xlabel("share of computing time (%)")
    axes.set_xlim(0, 120 * max([v or 0.0 for _, values, _ in series for v in values] + [0.01]))


def modules_text(stage: Stage, *, limit: int) -> str:
    """The stage's first and last module, shortened to about `limit` characters."""
    if not stage.modules:
        return f"operations {stage.first}-{stage.last - 1}"
    ends = list(dict.fromkeys((stage.modules[0], stage.modules[-1])))
    each = limit // len(ends)
    return " ... ".join(name if len(name) <= each else f"{name[: each - 2]}.." for name in ends)


def timetable_picture(plan: Plan) -> Figure:
    """One step of one replica: when each device runs which pass of which micro-batch.

    The stages of one device have different shades, the first the darkest; numbers are those of the micro-batches.
    """
    table = plan.timetable()
    count = len(table.devices)
    figure = Figure(figsize=(9, min(1.3 + 0.45 * count, 12)), layout="constrained")
    axes = figure.subplots()
    scale, unit = (1e3, "ms") if table.seconds < 1 else (1.0, "s")
    passes = sum(map(len, table.devices))
    size = 8 if passes <= NUMBERED // 2 else 6
    for device, entries in enumerate(table.devices):
        mine = sorted({entry.action.stage for entry in entries})
        bars = [(scale * entry.start, scale * (entry.end - entry.start)) for entry in entries]
        colours = [
            _shade(FORWARD if e.action.kind == "forward" else BACKWARD, mine.index(e.action.stage), len(mine))
            for e in entries
        ]
        axes.broken_barh(
            bars, (device - 0.4, 0.8), facecolors=colours, edgecolors="white", linewidth=0.4, rasterized=passes > 2000
        )
        if passes <= NUMBERED:
            for (start, width), entry, colour in zip(bars, entries, colours):
                ink = "white" if sum(colour) < 1.6 else "black"
                number = str(entry.action.micro_batch)
                axes.text(start + width / 2, device, number, ha="center", va="center", fontsize=size, color=ink)
    axes.set_yticks(range(count), [f"device {device}" for device in range(count)], fontsize=8 if count <= 24 else 5)
    axes.set_ylim(count - 0.5, -0.5)
    axes.set_xlim(0, scale * table.seconds or 1.0)
    axes.set_xlabel(f"time in the step, predicted ({unit})")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(handles=_legend(plan), loc="outside upper center", ncols=6, frameon=False, fontsize=8)
    return figure


def _legend(plan: Plan) -> Sequence[Patch]:
    each = plan.choices.stages // plan.choices.devices
    return [
        Patch(color=_shade(colour, i, each), label=f"{kind}{f', stage {i + 1} of the device' if each > 1 else ''}")
        for kind, colour in (("forward", FORWARD), ("backward", BACKWARD))
        for i in range(each)
    ]


def _shade(colour: str, index: int, count: int) -> tuple[float, float, float]:
    """The colour mixed with white, more so for later ones."""
    white = 0.65 * index / max(1, count - 1)
    r, g, b = (part + (1 - part) * white for part in to_rgb(colour))
    return r, g, b

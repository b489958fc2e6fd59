"""A plan in the terminal: a table of its devices, a drawing of a step, and why the alternatives lost."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lampseg.partition.plan import Plan, Stage
from lampseg.partition.schedule import Entry
from lampseg.units import format_bytes, format_count, format_seconds

FORWARD, BACKWARD, WAIT = "0123456789", "abcdefghij", "."
SHOWN = 6
"""Alternatives that are listed."""


def show_plan(plan: Plan, *, width: int = 64, alternatives: int = SHOWN) -> RenderableType:
    """Everything about a plan."""
    parts: list[RenderableType] = [Text(plan.headline(), style="bold"), plan_table(plan)]
    if plan.choices.devices > 1:
        parts += [drawing(plan, width=width), Text(transfers_text(plan))]
    elif plan.choices.spatial:
        parts.append(Text(transfers_text(plan)))
    if plan.choices.recomputed:
        parts.append(Text(recomputed_text(plan)))
    if plan.alternatives:
        parts += [Text("Considered, and why not taken:"), alternatives_table(plan, limit=alternatives)]
    return Group(*parts)


def plan_table(plan: Plan) -> Table:
    """What each device holds and does; it fits 80 columns."""
    unit, scale = ("GiB", 2.0**30) if plan.peak_bytes >= 2**30 else ("MiB", 2.0**20)
    table = Table(box=SIMPLE_HEAD, pad_edge=False, caption=f"memory in {unit}", caption_justify="left")
    table.add_column("device", justify="right", no_wrap=True)
    table.add_column("runs, from", overflow="fold")
    limited = any(load.memory_bytes is not None for load in plan.devices)
    for name in ("weights", "peak", *(("has",) if limited else ()), "state", "kept", "other", "busy"):
        table.add_column(name, justify="right", no_wrap=True)

    def amount(nbytes: float) -> str:
        return f"{nbytes / scale:.2f}" if nbytes < 100 * scale else f"{nbytes / scale:.0f}"

    for load in plan.devices:
        mine = [s for s in plan.stages if s.device == load.index // plan.choices.sharing]
        state = load.parameter_bytes + load.gradient_bytes + load.optimizer_bytes
        other = load.boundary_bytes + load.temporary_bytes + load.library_bytes
        has = () if not limited else ("-" if load.memory_bytes is None else amount(load.memory_bytes),)
        table.add_row(
            str(load.index),
            _runs_text(plan, load.index, mine),
            format_count(sum(stage.parameters for stage in mine)),
            amount(load.peak_bytes),
            *has,
            amount(state),
            amount(load.activation_bytes),
            amount(other),
            f"{load.busy_seconds / max(plan.step_seconds, 1e-30):.0%}",
        )
    return table


def _runs_text(plan: Plan, device: int, stages: Sequence[Stage]) -> str:
    lines = [] if plan.choices.spatial and plan.choices.devices == 1 else [_stage_text(stage) for stage in stages]
    if plan.choices.spatial:
        lines.append(_slab_text(plan, device % plan.choices.sharing))
    return "\n".join(lines)


def _stage_text(stage: Stage) -> str:
    again = "" if stage.recompute == "none" else ", recompute"
    return f"{stage.first}-{stage.last - 1} {stage.begins.split(' @ ')[-1]}{again}"


def _slab_text(plan: Plan, index: int) -> str:
    """Such as `slab 2.1.1 of 4x1x1`."""
    place = []
    for count in reversed(plan.choices.slabs):
        index, at = divmod(index, count)
        place.append(at + 1)
    grid = "x".join(map(str, plan.choices.slabs))
    return f"slab {'.'.join(map(str, reversed(place)))} of {grid}"


def drawing(plan: Plan, *, width: int = 64) -> Text:
    """A step of one replica: digits are forwards, letters backwards of the same micro-batches, dots waiting."""
    table = plan.timetable()
    text = Text(
        f"One step, {format_seconds(plan.step_seconds)}: forwards 0 1 2 ..., backwards a b c ... of the same "
        "micro-batches, . waits\n"
    )
    for device, entries in enumerate(table.devices):
        text.append(f"  {'place ' if plan.choices.spatial else 'device'} {device:2d} ")
        text.append_text(_lane(entries, seconds=table.seconds, width=width))
        text.append("\n")
    text.rstrip()
    return text


def _lane(entries: Sequence[Entry], *, seconds: float, width: int) -> Text:
    lane = [(WAIT, "dim")] * width
    for entry in entries:
        if entry.end <= entry.start:
            continue  # put off to its backward
        forward = entry.action.kind == "forward"
        symbols, style = (FORWARD, "cyan") if forward else (BACKWARD, "green")
        first, last = (round(time / max(seconds, 1e-30) * width) for time in (entry.start, entry.end))
        for column in range(first, min(max(last, first + 1), width)):
            lane[column] = (symbols[entry.action.micro_batch % len(symbols)], style)
    text = Text()
    for symbol, style in lane:
        text.append(symbol, style=style)
    return text


def transfers_text(plan: Plan) -> str:
    """What goes between devices for one micro-batch."""
    if plan.choices.spatial and plan.choices.devices == 1:
        most = format_bytes(plan.stages[0].send_bytes)
        return f"Between neighbours, for each micro-batch forward and back: each rank sends halos of {most} at most"
    places = [stage.device for stage in plan.stages]
    away = [link for link in plan.links if places[link.source] != places[link.target]]
    if not away:
        return "Nothing goes between devices."
    each = ", ".join(f"{link.source}>{link.target} {format_bytes(link.nbytes)}" for link in away)
    total = sum(link.nbytes for link in away)
    slab = " of a slab" if plan.choices.spatial else ""
    return f"Between stages, for each micro-batch{slab} forward (and as much back): {format_bytes(total)} ({each})"


def recomputed_text(plan: Plan) -> str:
    """Which modules run again on slabs."""
    return f"Run again in the backward, instead of keeping activations: {', '.join(plan.choices.recomputed)}"


def alternatives_table(plan: Plan, *, limit: int = SHOWN) -> Table:
    """The best of the other ways."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in ("way", "step", "fullest device", "why not"):
        table.add_column(name, overflow="fold")
    for other in plan.alternatives[:limit]:
        table.add_row(
            other.label,
            "-" if other.step_seconds is None else format_seconds(other.step_seconds),
            "-" if other.peak_bytes is None else format_bytes(other.peak_bytes),
            other.verdict,
        )
    return table


def plan_paragraph(plan: Plan) -> str:
    """What a run says before it starts, in one paragraph."""
    parts = [f"{plan.headline()}."]
    fullest = max(plan.devices, key=lambda load: load.peak_bytes)
    has = "" if fullest.memory_bytes is None else f" of {format_bytes(fullest.memory_bytes)}"
    parts.append(f"The fullest device needs {format_bytes(fullest.peak_bytes)}{has}.")
    parts.append(f"A step should take {format_seconds(plan.step_seconds)} ({plan.hardware}).")
    if plan.alternatives:
        next_best = plan.alternatives[0]
        parts.append(f"Next best: {next_best.label}: {next_best.verdict}.")
    return " ".join(parts)

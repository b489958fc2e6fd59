"""What `inspect` found, as tables and sentences."""

from collections import Counter
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lampseg.commands.inspect import Inspection
from lampseg.data.fingerprint.fingerprint import PERCENTILES, ClassSummary, Fingerprint, Spread
from lampseg.evaluation.tables import ABSENT, counted
from lampseg.training.whole_volume import MEMORIES
from lampseg.units import format_bytes, format_count

MOST_CASES = 40
"""Rows of the table of cases; the JSON form lists all."""


def print_inspection(found: Inspection, console: Console) -> None:
    """Prints everything but the faulty cases."""
    fingerprint = found.fingerprint
    parts = Counter(case.part for case in fingerprint.measured)
    console.print(
        f"{fingerprint.dataset}: {counted(parts['training'], 'training case')}, {counted(parts['test'], 'test case')}, "
        f"{counted(len(fingerprint.channels), 'channel')}, {counted(len(fingerprint.classes) - 1, 'organ')}",
        markup=False,
        highlight=False,
    )
    for table in (
        case_table(fingerprint),
        grid_table(fingerprint),
        class_table(fingerprint.summaries),
        intensity_table(fingerprint),
    ):
        console.print(table)
    for line in _largest_lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    if found.needs:
        console.print(memory_table(found))
    console.print(suggestion_text(found), markup=False, highlight=False, soft_wrap=True)
    for note in found.notes:
        console.print(f"Look at: {note}", markup=False, highlight=False, soft_wrap=True)
    if found.faulty:
        count = counted(len(found.faulty), "case")
        console.print(f"{count} could not be read, and left out above", markup=False, highlight=False)


def case_table(found: Fingerprint) -> Table:
    """One row for each case, up to 40."""
    rows = []
    for measured in found.measured[:MOST_CASES]:
        case, header, figures = measured.case, measured.header, measured.figures
        missing = (
            [] if case.annotated is None else [n for i, n in enumerate(found.classes[1:], 1) if i not in case.annotated]
        )
        low, mean, high = figures.intensity[0]
        rows.append(
            (
                case.id,
                measured.part,
                _by(header.shape),
                _by(header.spacing),
                header.orientation,
                f"{_number(low)} / {_number(mean)} / {_number(high)}",
                str(len(figures.classes)) if case.labelled else ABSENT,
                ", ".join(missing) or ABSENT,
            )
        )
    more = len(found.measured) - MOST_CASES
    header_row = ("case", "part", "shape", "spacing (mm)", "axes", "lowest / mean / highest", "organs", "not annotated")
    caption = "Shape and spacing along x, y, z; axes as in the file."
    if more > 0:
        caption += f" {more} more cases are in the JSON form."
    return _table(header_row, rows, title="Cases", caption=caption)


def grid_table(found: Fingerprint) -> Table:
    """Sizes and spacings of each axis."""
    rows = []
    shapes, spacings = found.spread(lambda h: h.shape), found.spread(lambda h: h.spacing)
    for axis, shape, spacing in zip("xyz", shapes, spacings):
        extents = found.spread(lambda h: tuple(n * s for n, s in zip(h.shape, h.spacing)))["xyz".index(axis)]
        rows.append((axis, _spread(shape), _spread(spacing), _spread(extents)))
    orientations = Counter(case.header.orientation for case in found.measured)
    listed = ", ".join(f"{count} {name}" for name, count in sorted(orientations.items()))
    header = ("axis", "voxels", "spacing (mm)", "extent (mm)")
    return _table(header, rows, title="Grids: smallest / median / largest", caption=f"Axes of the files: {listed}.")


def class_table(summaries: Sequence[ClassSummary]) -> Table:
    """One row for each organ."""
    rows = []
    for each in summaries:
        rows.append(
            (
                each.name,
                str(each.annotated),
                str(each.present),
                _spread(each.voxels),
                _spread(each.ml),
                ABSENT if each.box_voxels is None else _by([round(side.median) for side in each.box_voxels]),
                ABSENT if each.box_mm is None else _by([round(side.median) for side in each.box_mm]),
                str(len(each.touches_border)),
                ABSENT if each.share is None else f"{100 * each.share:.2g}%",
            )
        )
    header = ("organ", "annotated", "present", "voxels", "ml", "box", "box (mm)", "at border", "of all voxels")
    caption = "Training cases. Smallest / median / largest where present; the median bounding box."
    return _table(header, rows, title="Organs", caption=caption)


def intensity_table(found: Fingerprint) -> Table:
    """Percentiles of each region and channel."""
    several = len(found.channels) > 1
    rows = [
        (
            row.region + (f", {row.channel}" if several else ""),
            str(row.cases),
            str(row.voxels),
            *(_number(value) for value in row.percentiles.values()),
        )
        for row in found.intensities
    ]
    header = ("region", "cases", "voxels", *(f"{rank:g}%" for rank in PERCENTILES))
    caption = f"Percentiles of a random sample: at most {found.sampled} voxels of each region in each case."
    return _table(header, rows, title="Intensities of the training cases", caption=caption)


def memory_table(found: Inspection) -> Table:
    """Bytes by network and precision."""
    rows = []
    for need in found.needs:
        peak = "not possible" if need.peak_bytes is None else format_bytes(need.peak_bytes)
        devices = [ABSENT if need.peak_bytes is None else str(need.devices(size)) for size in MEMORIES]
        rows.append((need.network, need.precision, format_count(need.parameters), peak, *devices))
    header = ("network", "precision", "parameters", "on one device", *(f"{size} GiB" for size in MEMORIES))
    caption = (
        "An estimate, without recompute. Right: devices that have as much together; `lampseg plan --fewest-devices` "
        "gives the number exactly."
    )
    return _table(header, rows, title=f"Training on {_by(found.largest)} voxels at once, batch 1", caption=caption)


def suggestion_text(found: Inspection) -> str:
    """A piece of configuration to paste."""
    suggested = found.fingerprint.suggestions
    lines = [
        "Suggestions by nnU-Net's rules, a start and not an optimum:",
        "data:",
        f"  root: {found.root}",
        f"  spacing: [{', '.join(f'{edge:g}' for edge in suggested.spacing)}]  # mm, the median of each axis",
    ]
    if suggested.window is None:
        lines.append(
            "  # no window: intensities are no Hounsfield units; each volume is normalised by mean and deviation"
        )
    else:
        low, high = suggested.window
        lines.append(f"  window: [{low:g}, {high:g}]  # 0.5th and 99.5th percentile of the organs")
    return "\n".join(lines)


def _largest_lines(found: Inspection) -> list[str]:
    largest = found.fingerprint.largest
    header = largest.header
    lines = [f"The largest volume is {largest.case.id}: {_by(header.shape)} voxels of {_by(header.spacing)} mm."]
    if found.spacing is not None:
        lines.append(f"At {_by(found.spacing)} mm the largest volume has {_by(found.largest)} voxels.")
    if found.largest_each != found.largest:
        lines.append(
            f"Per axis the largest training volumes have {_by(found.largest_each)}; `lampseg plan` takes those."
        )
    return lines


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str, caption: str) -> Table:
    """Names to the left, numbers to the right, as narrow as may be."""
    table = Table(
        title=title, caption=caption, box=SIMPLE_HEAD, pad_edge=False, title_justify="left", caption_justify="left"
    )
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(escape, row))
    return table


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ABSENT
    return " / ".join(_number(value) for value in (spread.min, spread.median, spread.max))


def _number(value: float) -> str:
    """Three digits, but no whole number shortened."""
    return f"{value:.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"


def _by(numbers: Sequence[float]) -> str:
    return " x ".join(_number(number) for number in numbers)

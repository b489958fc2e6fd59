"""Rows of numbers as a rich table, as CSV and as a file that is either whole or not there."""

import contextlib
import csv
import io
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from lampseg.errors import UserError

ABSENT = "-"
"""What stands in a table for a value that was excluded or not measured."""


def dice_text(dice: float | None) -> str:
    """A Dice coefficient (0 to 1) with three decimals."""
    return ABSENT if dice is None else f"{dice:.3f}"


def counted(number: int, noun: str) -> str:
    """A number and its noun: 1 case, 2 cases."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def few(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def seconds_text(seconds: float | None) -> str:
    """A duration in s, min or h, to about three digits."""
    if seconds is None:
        return ABSENT
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.1f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def bytes_text(count: float | None) -> str:
    """A number of bytes in binary units, to about three digits."""
    if count is None:
        return ABSENT
    scale, unit = byte_unit(count)
    return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:.0f} {unit}"


def byte_unit(largest: float) -> tuple[float, str]:
    """The binary unit in which `largest` bytes reads well: (bytes per unit, name)."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if largest >= 1024.0**power:
            return 1024.0**power, unit
    return 1.0, "B"


def rich_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    footer: Sequence[Sequence[str]] = (),
    title: str | None = None,
    caption: str | None = None,
) -> Table:
    """A table whose first column is text and whose others are right-aligned numbers.

    `footer` rows follow below a line. Names are shown as they are: no rich markup is read in them.
    """
    table = Table(title=title and escape(title), caption=caption and escape(caption), caption_justify="left")
    for i, name in enumerate(header):
        table.add_column(escape(name), justify="right" if i else "left", overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(*map(escape, row), end_section=bool(footer) and i == len(rows) - 1)
    for row in footer:
        table.add_row(*map(escape, row), style="bold" if row is footer[0] else None)
    return table


def csv_text(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """CSV (RFC 4180 with bare newlines); None becomes an empty cell, floats keep six decimals."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{v:.6f}" if isinstance(v, float) else v for v in row] for row in rows)
    return out.getvalue()


def write_text(path: Path, text: str) -> Path:
    """Writes `text` (UTF-8) beside `path` and then renames it: a reader sees all of it or the old file.

    Raises:
        UserError: the folder cannot be made or written (read-only, disk full, ...).
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder"
        ) from error
    return path


def check_can_write(path: Path) -> None:
    """Tries to write where `path` is to appear, before work is done for it; makes no folder and leaves nothing behind.

    Raises:
        UserError: as `write_text`.
    """
    above = next(folder for folder in (path.parent, *path.parent.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=above) as file:
            file.write(b"lampseg")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); free space or choose another folder"
        ) from error

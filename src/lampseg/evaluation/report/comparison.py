"""Several ways to segment the same cases side by side: Dice per organ, average and seconds per volume."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from lampseg.errors import UserError
from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.tables import csv_text, dice_text, rich_table, seconds_text, write_text


@dataclass(frozen=True)
class ComparisonRow:
    """One way: e.g. "whole volume, final weights"."""

    label: str
    evaluation: Evaluation
    seconds_per_volume: float
    """Mean wall-clock seconds to segment one volume."""
    series: str = ""
    """What belongs together in the figure of Dice against seconds, e.g. a network: one colour, joined by a line."""
    input: str = ""
    """What the members of a series differ in, e.g. the input's size: one marker."""


@dataclass(frozen=True)
class Comparison:
    """Ways that were measured on the same organs (and should be on the same cases), in the order to show."""

    rows: tuple[ComparisonRow, ...]

    def __post_init__(self) -> None:
        assert self.rows, "a comparison has at least one row"
        assert len({row.evaluation.organs for row in self.rows}) == 1, "all rows score the same organs"
        assert len({row.label for row in self.rows}) == len(self.rows), "labels are unique"

    @property
    def organs(self) -> tuple[str, ...]:
        return self.rows[0].evaluation.organs

    @property
    def same_cases(self) -> bool:
        """Whether all rows scored the same cases; if not, their averages cannot be compared."""
        return len({frozenset(c.case for c in row.evaluation.cases) for row in self.rows}) == 1

    def best(self) -> frozenset[tuple[int, int]]:
        """(row, column) of `text_rows` that hold the highest Dice of their row, as shown; the footer counts on."""
        table = list(zip(*(row_dice(row) for row in self.rows)))
        cells = set()
        for i, dice in enumerate(table):
            top = max((dice_text(d) for d in dice if d is not None), default=None)
            cells |= {(i, j) for j, d in enumerate(dice, start=1) if d is not None and dice_text(d) == top}
        return frozenset(cells)

    def table(self, *, title: str = "Dice and time") -> Table:
        """One column per way; a row per organ, then the average and the seconds per volume."""
        header, rows, footer = self.text_rows()
        return rich_table(header, rows, footer=footer, title=title, caption=self.note())

    def text_rows(self) -> tuple[list[str], list[list[str]], list[list[str]]]:
        """The cells of `table`: header, rows, footer."""
        columns = [[dice_text(d) for d in row_dice(row)] for row in self.rows]
        *rows, average = [list(cells) for cells in zip([*self.organs, "average"], *columns)]
        seconds = ["time per volume", *(seconds_text(row.seconds_per_volume) for row in self.rows)]
        return ["organ", *(row.label for row in self.rows)], rows, [average, seconds]

    def note(self) -> str:
        """What a reader must know to read the table."""
        counts = {len(row.evaluation.cases) for row in self.rows}
        text = f"Mean Dice over {' or '.join(map(str, sorted(counts)))} cases; average over organs."
        return text if self.same_cases else f"{text} The rows scored different cases: do not compare them."

    def to_csv(self) -> str:
        """One row per way; Dice between 0 and 1, seconds as a number."""
        rows: list[Sequence[object]] = [[row.label, *row_dice(row), float(row.seconds_per_volume)] for row in self.rows]
        return csv_text(["method", *self.organs, "average", "seconds_per_volume"], rows)

    def to_json(self) -> str:
        """All ways with every case's Dice, as in `evaluation.json`."""
        rows = [
            {
                "method": row.label,
                "seconds_per_volume": float(row.seconds_per_volume),
                **({"series": row.series, "input": row.input} if row.series or row.input else {}),
                "evaluation": json.loads(row.evaluation.to_json()),
            }
            for row in self.rows
        ]
        return json.dumps({"version": 1, "rows": rows}, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str = "comparison.json") -> "Comparison":
        """The comparison that `to_json` wrote; `source` names the file in errors.

        Raises:
            UserError: not such a file.
        """
        try:
            rows = tuple(
                ComparisonRow(
                    str(row["method"]),
                    Evaluation.from_json(json.dumps(row["evaluation"]), source=source),
                    float(row["seconds_per_volume"]),
                    series=str(row.get("series", "")),
                    input=str(row.get("input", "")),
                )
                for row in json.loads(text)["rows"]
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{source}: not a comparison that `Comparison.write` wrote ({error!r})") from error
        organs, labels = {row.evaluation.organs for row in rows}, {row.label for row in rows}
        if not rows or len(organs) > 1 or len(labels) < len(rows):
            raise UserError(
                f"{source}: a comparison has at least one row, all of the same organs, with different names"
            )
        return cls(rows)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Writes `comparison.json` and `comparison.csv` into the folder, each whole or not at all.

        Raises:
            UserError: the folder cannot be written.
        """
        return (
            write_text(Path(folder) / "comparison.json", self.to_json()),
            write_text(Path(folder) / "comparison.csv", self.to_csv()),
        )


def row_dice(row: ComparisonRow) -> tuple[float | None, ...]:
    """The row's mean Dice of each organ, then its average."""
    return (*(organ.mean for organ in row.evaluation.per_organ), row.evaluation.average)

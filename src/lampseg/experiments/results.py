"""What came out of a study, beside the paper's figures: every cell with the paper's value, ours and the difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from lampseg.evaluation.report.parts import TablePart
from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.tables import ABSENT, csv_text
from lampseg.experiments.definition import Row, Study
from lampseg.experiments.paper_tables import Key, paper_dice, paper_seconds

AVERAGE = "average"


@dataclass(frozen=True)
class Result:
    """Of one row, as far as it is done."""

    row: Row
    evaluation: Evaluation | None = None
    seconds: tuple[float, ...] = ()
    """Of one test image, mean of each round."""

    def dice(self) -> dict[str, float | None]:
        """Percent by the paper's columns, the average too; a class that the data lack has no value."""
        if self.evaluation is None:
            return {}
        means = self.evaluation.by_organ()
        percent = {
            column.lower(): _percent(means.get(organ)) for organ, column in self.row.experiment.study.organs.items()
        }
        return percent | {AVERAGE: _percent(self.evaluation.average)}


@dataclass(frozen=True)
class Cell:
    """A figure of the paper beside ours."""

    paper: float | None
    ours: float | None
    spread: float | None = None
    """Standard deviation of ours, over rounds."""

    @property
    def difference(self) -> float | None:
        return None if self.paper is None or self.ours is None else self.ours - self.paper

    def text(self) -> str:
        """For example `84.23 | 83.10 (-1.13)`."""
        paper, ours = (ABSENT if value is None else f"{value:.2f}" for value in (self.paper, self.ours))
        spread = "" if self.spread is None else f"±{self.spread:.2f}"
        return f"{paper} | {ours}{spread}" + ("" if self.difference is None else f" ({self.difference:+.2f})")


@dataclass(frozen=True)
class Filled:
    """A table of the paper, filled."""

    name: str
    """Of its file, such as table1."""
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]

    def part(self) -> TablePart:
        """For a page."""
        rows = [[label, *(cell.text() for cell in cells)] for label, cells in self.rows]
        note = f"Each cell: the paper | ours (difference). {ABSENT}: not there."
        return TablePart(["model (input)", *self.columns], rows, note=f"{self.title} {note}")

    def to_csv(self) -> str:
        """Three columns for each of the paper's."""
        header = ["model (input)"]
        for column in self.columns:
            header += [f"{column} paper", f"{column} ours", f"{column} difference"]
        rows: list[list[object]] = []
        for label, cells in self.rows:
            row: list[object] = [label]
            for cell in cells:
                row += [cell.paper, cell.ours, cell.difference]
            rows.append(row)
        return csv_text(header, rows)


def filled_tables(study: Study, results: Sequence[Result]) -> tuple[Filled, ...]:
    """The study's tables: of Dice (%), one for each of the paper's, then of seconds for one test image."""
    by_key: dict[Key, Result] = {result.row.key: result for result in results}
    by_seconds: dict[Key, Result] = {result.row.seconds_key: result for result in results}
    tables = [_dice_table(study, name, by_key) for name in study.dice_tables]
    return (*tables, _seconds_table(study, by_seconds))


def _dice_table(study: Study, name: str, results: Mapping[Key, Result]) -> Filled:
    rows = []
    columns: tuple[str, ...] = ()
    for key, paper in paper_dice(study, only=name).items():
        columns = tuple(paper)
        ours = results[key].dice() if key in results else {}
        rows.append((_label(key), tuple(Cell(paper[column], ours.get(column)) for column in columns)))
    number = name[5]
    shown = tuple(column.upper() if len(column) == 2 else column for column in columns)
    return Filled(f"table{number}", f"Table {number}: Dice (%), {study.title}.", shown, tuple(rows))


def _seconds_table(study: Study, results: Mapping[Key, Result]) -> Filled:
    rows = []
    for key, paper in paper_seconds(study).items():
        seconds = results[key].seconds if key in results else ()
        cell = Cell(paper.mean, fmean(seconds) if seconds else None, stdev(seconds) if len(seconds) > 1 else None)
        rows.append((_label(key) + (f", {paper.devices}" if paper.devices else ""), (cell,)))
    number = study.seconds_table[5]
    title = f"Table {number}: seconds for one test image, {study.title}; the paper's on the devices named, ours here."
    return Filled(f"table{number}", title, ("seconds",), tuple(rows))


def _label(key: Key) -> str:
    model, given = key
    return model if not given else f"{model} ({given}{'' if given == 'whole' else '^3'})"


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value

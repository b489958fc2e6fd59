"""The value of an evaluation: Dice of every case and organ, the means, and its JSON, CSV and table forms."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table

from lampseg.errors import UserError
from lampseg.evaluation.tables import ABSENT, csv_text, dice_text, rich_table


@dataclass(frozen=True)
class CaseDice:
    """Dice of one case, in the order of the evaluation's organs; None: excluded (see `dice_per_class`)."""

    case: str
    dice: tuple[float | None, ...]

    @property
    def average(self) -> float | None:
        """Mean over the organs scored in this case."""
        return _mean(self.dice)


@dataclass(frozen=True)
class OrganDice:
    """Dice of one organ over the cases in which it was scored."""

    mean: float | None
    """None: scored in no case."""
    sd: float | None
    """Sample standard deviation (n - 1); None with fewer than two cases."""
    count: int


@dataclass(frozen=True)
class Evaluation:
    """Dice of some cases. Build it with `Evaluation.from_cases`."""

    organs: tuple[str, ...]
    """Names of the foreground classes, that of class 1 first."""
    cases: tuple[CaseDice, ...]
    unpredicted: tuple[str, ...] = ()
    """Labelled cases beside the scored ones for which there was no prediction."""

    def __post_init__(self) -> None:
        assert all(len(c.dice) == len(self.organs) for c in self.cases), "one Dice per organ and case"
        assert len({c.case for c in self.cases}) == len(self.cases), "case names are unique"

    @classmethod
    def from_cases(
        cls,
        cases: Mapping[str, Sequence[float | None]],
        *,
        class_names: Sequence[str],
        unpredicted: Sequence[str] = (),
    ) -> "Evaluation":
        """From the Dice of each case by name, as `dice_per_class` gives it (foreground classes only).

        Args:
            cases: case name -> one value per foreground class.
            class_names: names of all classes, index 0 = background (as in `lampseg.data`).
            unpredicted: labelled cases without a prediction.
        """
        rows = tuple(CaseDice(name, tuple(_value(d) for d in dice)) for name, dice in cases.items())
        return cls(tuple(class_names[1:]), rows, tuple(unpredicted))

    @property
    def per_organ(self) -> tuple[OrganDice, ...]:
        """Mean, deviation and number of scored cases of each organ, in the order of `organs`."""
        return tuple(_summary([c.dice[i] for c in self.cases]) for i in range(len(self.organs)))

    @property
    def average(self) -> float | None:
        """Mean over the organs of each organ's mean over cases; organs scored nowhere do not enter."""
        return _mean([organ.mean for organ in self.per_organ])

    def by_organ(self) -> dict[str, float | None]:
        """Organ -> mean Dice: what `metrics.jsonl` holds for a validation."""
        return {name: organ.mean for name, organ in zip(self.organs, self.per_organ)}

    def to_json(self) -> str:
        """All values, Dice between 0 and 1, null where excluded; the means are there for the reader."""
        summary = self.per_organ
        tree = {
            "version": 1,
            "organs": list(self.organs),
            "average": self.average,
            "mean": {name: s.mean for name, s in zip(self.organs, summary)},
            "sd": {name: s.sd for name, s in zip(self.organs, summary)},
            "count": {name: s.count for name, s in zip(self.organs, summary)},
            "cases": {c.case: dict(zip(self.organs, c.dice)) for c in self.cases},
            "unpredicted": list(self.unpredicted),
        }
        return json.dumps(tree, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str = "evaluation.json") -> "Evaluation":
        """The evaluation that `to_json` wrote; `source` names the file in errors.

        Raises:
            UserError: not such a file.
        """
        try:
            tree = json.loads(text)
            organs = tuple(str(name) for name in tree["organs"])
            cases = tuple(
                CaseDice(str(case), tuple(_value(dice[organ]) for organ in organs))
                for case, dice in tree["cases"].items()
            )
            return cls(organs, cases, tuple(str(name) for name in tree.get("unpredicted", ())))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise UserError(
                f"{source}: not an evaluation written by `lampseg evaluate` ({error!r}); run it again"
            ) from error

    def to_csv(self) -> str:
        """One row per case, then the row `mean`; an excluded value is an empty cell."""
        rows = [[c.case, *c.dice, c.average] for c in self.cases]
        means = [s.mean for s in self.per_organ]
        return csv_text(["case", *self.organs, "average"], [*rows, ["mean", *means, self.average]])

    def table(self, *, title: str = "Dice") -> Table:
        """One row per organ: mean, standard deviation and number of scored cases; then the average.

        The single cases are in the CSV and the report: a row per case is too wide for a terminal.
        """
        rows = [
            [name, dice_text(s.mean), dice_text(s.sd), str(s.count)] for name, s in zip(self.organs, self.per_organ)
        ]
        footer = [["average", dice_text(self.average), "", str(len(self.cases))]]
        header = ["organ", "mean", "sd", "cases"]
        return rich_table(header, rows, footer=footer, title=title, caption=self.note())

    def case_rows(self) -> tuple[list[list[str]], list[list[str]]]:
        """The cells of a table with a row per case and a column per organ, and those of its footer."""
        rows = [[c.case, *map(dice_text, c.dice), dice_text(c.average)] for c in self.cases]
        summary = self.per_organ
        footer = [
            ["mean", *(dice_text(s.mean) for s in summary), dice_text(self.average)],
            ["sd", *(dice_text(s.sd) for s in summary), ""],
            ["scored cases", *(str(s.count) for s in summary), ""],
        ]
        return rows, footer

    def note(self) -> str:
        """What a reader must know to read the table: what is excluded, and which cases had no prediction."""
        text = (
            f"{ABSENT}: not annotated, or neither there nor predicted; excluded. "
            "The average is the mean over organs of their means."
        )
        if not self.unpredicted:
            return text
        few = ", ".join(self.unpredicted[:5]) + (", ..." if len(self.unpredicted) > 5 else "")
        return f"{text} Labelled cases without a prediction, not scored: {len(self.unpredicted)} ({few})."


def _value(dice: float | None) -> float | None:
    if dice is None or math.isnan(dice):
        return None
    return float(dice)


def _mean(values: Sequence[float | None]) -> float | None:
    scored = [v for v in values if v is not None]
    return statistics.fmean(scored) if scored else None


def _summary(values: Sequence[float | None]) -> OrganDice:
    scored = [v for v in values if v is not None]
    return OrganDice(_mean(scored), statistics.stdev(scored) if len(scored) > 1 else None, len(scored))

"""The value of an evaluation: Dice and other metrics of every case and organ, the means, and its JSON and CSV."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from lampseg.errors import UserError
from lampseg.evaluation.metrics.case_scores import ClassScores
from lampseg.evaluation.metrics.measures import METRICS, ordered
from lampseg.evaluation.statistics.bootstrap import Summary, summarise
from lampseg.evaluation.tables import ABSENT, csv_text, dice_text, rich_table


@dataclass(frozen=True)
class CaseDice:
    """Dice of one case, in the order of the evaluation's organs; None: excluded (see `dice_per_class`)."""

    case: str
    dice: tuple[float | None, ...]
    scores: tuple[ClassScores, ...] = ()
    """All metrics, in the same order; empty where only Dice was measured."""

    def values(self, metric: str) -> tuple[float | None, ...]:
        """One metric, in the order of the evaluation's organs."""
        return self.dice if metric == "dice" else tuple(organ.values[metric] for organ in self.scores)

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
    """Dice and other metrics of some cases. Build it with `Evaluation.from_cases` or `Evaluation.from_scores`."""

    organs: tuple[str, ...]
    """Names of the foreground classes, that of class 1 first."""
    cases: tuple[CaseDice, ...]
    unpredicted: tuple[str, ...] = ()
    """Labelled cases beside the scored ones for which there was no prediction."""
    tolerance_mm: tuple[float, ...] = ()
    """Of the surface Dice, for each organ; empty if it was not measured."""

    def __post_init__(self) -> None:
        assert all(len(c.dice) == len(self.organs) for c in self.cases), "one Dice per organ and case"
        assert all(len(c.scores) in (0, len(self.organs)) for c in self.cases), "all metrics of each organ, or none"
        assert len({tuple(s.values) for c in self.cases for s in c.scores}) < 2, "the same metrics everywhere"
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

    @classmethod
    def from_scores(
        cls,
        cases: Mapping[str, Sequence[ClassScores]],
        *,
        class_names: Sequence[str],
        unpredicted: Sequence[str] = (),
        tolerance_mm: Sequence[float] = (),
    ) -> "Evaluation":
        """From all metrics of each case by name, as `score_case` gives them; `dice` must be among them.

        Args:
            cases: case name -> one value per foreground class.
            class_names: names of all classes, index 0 = background.
            unpredicted: labelled cases without a prediction.
            tolerance_mm: of the surface Dice, for each foreground class.
        """
        rows = tuple(
            CaseDice(name, tuple(s.values["dice"] for s in scores), tuple(scores)) for name, scores in cases.items()
        )
        return cls(tuple(class_names[1:]), rows, tuple(unpredicted), tuple(tolerance_mm))

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics that were measured: `dice` always."""
        scored = [set(organ.values) for c in self.cases for organ in c.scores]
        complete = bool(scored) and all(c.scores for c in self.cases)
        return ordered({"dice", *(scored[0] if complete else ())})

    def summary(self, metric: str) -> tuple[Summary, ...]:
        """Mean, deviation, median, interval and number of cases of each organ, in the order of `organs`."""
        columns = zip(*(c.values(metric) for c in self.cases))
        undefined = [0] * len(self.organs)
        for case in self.cases:
            for index, organ in enumerate(case.scores):
                undefined[index] += organ.undefined(metric)
        return tuple(summarise(column, undefined=u) for column, u in zip(columns, undefined)) or tuple(
            summarise(()) for _ in self.organs
        )

    def organ_average(self, metric: str) -> float | None:
        """Mean over the organs of each organ's mean over cases; organs without a value do not enter."""
        return _mean([_mean([c.values(metric)[i] for c in self.cases]) for i in range(len(self.organs))])

    def case_summary(self, metric: str) -> Summary:
        """The same of the cases' means: each case's mean over the organs for which it has a value."""
        return summarise([_mean(c.values(metric)) for c in self.cases])

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
        tree: dict[str, Any] = {
            "version": 1,
            "organs": list(self.organs),
            "average": self.average,
            "mean": {name: s.mean for name, s in zip(self.organs, summary)},
            "sd": {name: s.sd for name, s in zip(self.organs, summary)},
            "count": {name: s.count for name, s in zip(self.organs, summary)},
            "cases": {c.case: dict(zip(self.organs, c.dice)) for c in self.cases},
            "unpredicted": list(self.unpredicted),
        }
        if any(c.scores for c in self.cases):
            tree["metrics"] = {m: {"unit": METRICS[m].unit, "better": METRICS[m].better} for m in self.metrics}
            tree["tolerance_mm"] = dict(zip(self.organs, self.tolerance_mm))
            tree["scores"] = {
                c.case: {name: organ.to_tree() for name, organ in zip(self.organs, c.scores)} for c in self.cases
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
            scores = tree.get("scores", {})
            cases = tuple(
                CaseDice(
                    str(case),
                    tuple(_value(dice[organ]) for organ in organs),
                    tuple(ClassScores.from_tree(scores[case][organ]) for organ in organs) if scores else (),
                )
                for case, dice in tree["cases"].items()
            )
            tolerances = tree.get("tolerance_mm") or {}
            return cls(
                organs,
                cases,
                tuple(str(name) for name in tree.get("unpredicted", ())),
                tuple(float(tolerances[organ]) for organ in organs) if tolerances else (),
            )
        except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
            raise UserError(
                f"{source}: not an evaluation written by `lampseg evaluate` ({error!r}); run it again"
            ) from error

    def to_csv(self) -> str:
        """One row per case and class with all metrics; an excluded value is an empty cell."""
        rows: list[list[object]] = []
        for case in self.cases:
            for index, organ in enumerate(self.organs):
                scores = case.scores[index] if case.scores else None
                about = (scores.presence, scores.truth_ml, scores.predicted_ml) if scores else (None, None, None)
                rows.append([case.case, organ, *about, *(case.values(metric)[index] for metric in self.metrics)])
        return csv_text(["case", "class", "presence", "truth_ml", "predicted_ml", *self.metrics], rows)

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

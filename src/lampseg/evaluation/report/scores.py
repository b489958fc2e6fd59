"""Whatever `evaluation.json` holds of every case and organ, metric by metric, for tables and box plots."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.statistics.bootstrap import summarise
from lampseg.evaluation.tables import ABSENT

Values = Mapping[str, tuple[float | None, ...]]
"""Case -> one value for each organ; None: excluded."""


@dataclass(frozen=True)
class Metric:
    """How a metric is shown."""

    key: str
    title: str
    unit: str = ""
    digits: int = 3
    higher_is_better: bool | None = True
    """None: neither, as for a signed error."""

    @property
    def heading(self) -> str:
        """Title and unit: "HD95 (mm)"."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float | None) -> str:
        """A value as it stands in a table."""
        return ABSENT if value is None else f"{value:.{self.digits}f}"


_KNOWN = (
    Metric("dice", "Dice"),
    Metric("jaccard", "Jaccard"),
    Metric("sensitivity", "Sensitivity"),
    Metric("precision", "Precision"),
    Metric("volume_error", "Volume error", "ml", 2, None),
    Metric("relative_volume_error", "Relative volume error", "", 3, None),
    Metric("hd95", "HD95", "mm", 2, False),
    Metric("assd", "ASSD", "mm", 2, False),
    Metric("nsd", "Surface Dice"),
)
"""Others are shown under their own name."""


@dataclass(frozen=True)
class ReportScores:
    """Every metric of every case; `values["dice"]` is always there."""

    organs: tuple[str, ...]
    values: Mapping[str, Values]
    described: Mapping[str, Metric] = field(default_factory=dict)
    """Metrics of which the unit and the direction are stated."""

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those that are there, Dice first."""
        known = {metric.key: metric for metric in _KNOWN} | dict(self.described)
        return tuple(known.get(key, Metric(key, key.replace("_", " "))) for key in self.values)

    def of_organ(self, metric: str, organ: str) -> list[float]:
        """The values of one organ over the cases in which it was scored."""
        i = self.organs.index(organ)
        return [value for row in self.values[metric].values() if (value := row[i]) is not None]

    def of_case(self, metric: str, case: str) -> Mapping[str, float | None]:
        """Organ -> value; empty if the case was not scored."""
        row = self.values.get(metric, {}).get(case)
        return {} if row is None else dict(zip(self.organs, row))

    def mean(self, metric: str, organ: str) -> float | None:
        """Over the cases in which the organ was scored; None without any."""
        values = self.of_organ(metric, organ)
        return statistics.fmean(values) if values else None

    def summary_rows(self, metric: Metric) -> list[list[str]]:
        """For each organ: mean, its 95 % interval, sd, median, lowest, highest, number of cases."""
        rows = []
        for organ in self.organs:
            values = self.of_organ(metric.key, organ)
            found = summarise(values)
            ends = found.interval
            rows.append(
                [
                    organ,
                    metric.text(found.mean),
                    ABSENT if ends is None else f"{metric.text(ends.low)} to {metric.text(ends.high)}",
                    metric.text(found.sd),
                    metric.text(found.median),
                    metric.text(min(values, default=None)),
                    metric.text(max(values, default=None)),
                    str(found.count),
                ]
            )
        return rows

    def worst(self, count: int, *, metric: str = "dice") -> tuple[tuple[str, str, float], ...]:
        """The `count` lowest values as (case, organ, value), the lowest first; ties in the order of the cases."""
        found = [
            (case, organ, value)
            for case, row in self.values[metric].items()
            for organ, value in zip(self.organs, row)
            if value is not None
        ]
        return tuple(sorted(found, key=lambda entry: entry[2])[:count])


def scores_of(evaluation: Evaluation) -> ReportScores:
    """Of an evaluation at hand."""
    return scores_from_json(evaluation.to_json())


def scores_from_json(text: str) -> ReportScores:
    """Of an `evaluation.json`, which `Evaluation.from_json` has accepted.

    `cases` (case -> organ -> Dice) is always there; `scores` (case -> organ -> {metric: value}) holds other metrics,
    and `metrics` their units and which way is better. Fields that are no numbers are left out.
    """
    tree = json.loads(text)
    organs = tuple(str(name) for name in tree["organs"])
    found: dict[str, dict[str, tuple[float | None, ...]]] = {
        "dice": {str(case): _numbers([row.get(organ) for organ in organs]) for case, row in tree["cases"].items()}
    }
    stated = tree.get("metrics")
    stated = stated if isinstance(stated, dict) else {}
    for case, row in (tree.get("scores") or {}).items():
        for key in stated:
            if key != "dice":
                found.setdefault(key, {})[str(case)] = _numbers([row.get(organ, {}).get(key) for organ in organs])
    return ReportScores(organs, found, {key: _stated(key, told) for key, told in stated.items()})


def _stated(key: str, told: Any) -> Metric:
    """A metric as the file describes it; the title and the decimals are this program's."""
    known = next((metric for metric in _KNOWN if metric.key == key), Metric(key, key.replace("_", " ")))
    if not isinstance(told, dict):
        return known
    better = {"higher": True, "lower": False}.get(str(told.get("better")))
    return replace(known, unit=str(told.get("unit") or ""), higher_is_better=better)


def _numbers(values: Sequence[Any]) -> tuple[float | None, ...]:
    """JSON's numbers; what is none, and what is not finite, counts as excluded."""
    return tuple(
        float(v) if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) else None
        for v in values
    )

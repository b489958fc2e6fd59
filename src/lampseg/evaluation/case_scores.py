"""Whatever `evaluation.json` holds of every case and organ, metric by metric, for tables and box plots."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lampseg.evaluation.scores import Evaluation
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
    Metric("nsd", "Surface Dice"),
    Metric("sensitivity", "Sensitivity"),
    Metric("precision", "Precision"),
    Metric("hd95", "HD95", "mm", 2, False),
    Metric("assd", "ASSD", "mm", 2, False),
    Metric("volume_error", "Volume error", "", 3, None),
)
"""Others are shown under their own name."""


@dataclass(frozen=True)
class CaseScores:
    """Every metric of every case; `values["dice"]` is always there."""

    organs: tuple[str, ...]
    values: Mapping[str, Values]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Those that are there: the known ones in their order, then the others."""
        known = [metric for metric in _KNOWN if metric.key in self.values]
        others = [key for key in self.values if key not in {metric.key for metric in _KNOWN}]
        return (*known, *(Metric(key, key.replace("_", " ")) for key in others))

    def of_organ(self, metric: str, organ: str) -> list[float]:
        """The values of one organ over the cases in which it was scored."""
        i = self.organs.index(organ)
        return [value for row in self.values[metric].values() if (value := row[i]) is not None]

    def of_case(self, metric: str, case: str) -> Mapping[str, float | None]:
        """Organ -> value; empty if the case was not scored."""
        row = self.values.get(metric, {}).get(case)
        return {} if row is None else dict(zip(self.organs, row))

    def summary_rows(self, metric: Metric) -> list[list[str]]:
        """For each organ: mean, sd, median, lowest, highest, number of scored cases."""
        rows = []
        for organ in self.organs:
            values = self.of_organ(metric.key, organ)
            numbers = [
                statistics.fmean(values) if values else None,
                statistics.stdev(values) if len(values) > 1 else None,
                statistics.median(values) if values else None,
                min(values, default=None),
                max(values, default=None),
            ]
            rows.append([organ, *map(metric.text, numbers), str(len(values))])
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


def scores_of(evaluation: Evaluation) -> CaseScores:
    """Of an evaluation at hand."""
    return scores_from_json(evaluation.to_json())


def scores_from_json(text: str) -> CaseScores:
    """Of an `evaluation.json`, which `Evaluation.from_json` has accepted; what is not understood is left out.

    Understood are `cases` (case -> organ -> Dice, or -> {metric: value}) and `metrics` (metric -> case -> organ ->
    value, also one level deeper, under `cases`).
    """
    tree = json.loads(text)
    organs = tuple(str(name) for name in tree["organs"])
    found: dict[str, dict[str, tuple[float | None, ...]]] = {"dice": {}}
    for case, row in tree["cases"].items():
        cells = [row.get(organ) for organ in organs]
        keys = dict.fromkeys(key for cell in cells if isinstance(cell, dict) for key in cell)
        for key in keys or ("dice",):
            values = [cell.get(key) if isinstance(cell, dict) else cell for cell in cells]
            found.setdefault(key, {})[str(case)] = _numbers(values)
    metrics = tree.get("metrics")
    for key, of_case in metrics.items() if isinstance(metrics, dict) else ():
        inner = of_case.get("cases", of_case) if isinstance(of_case, dict) else {}
        rows = {
            str(case): _numbers([row.get(organ) for organ in organs])
            for case, row in inner.items()
            if isinstance(row, dict)
        }
        if rows and any(value is not None for row in rows.values() for value in row):
            found[str(key)] = rows
    return CaseScores(organs, found)


def _numbers(values: Sequence[Any]) -> tuple[float | None, ...]:
    """JSON's numbers; what is none, and what is not finite, counts as excluded."""
    return tuple(
        float(v) if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) else None
        for v in values
    )

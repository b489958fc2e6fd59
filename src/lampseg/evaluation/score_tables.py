"""The summary of an evaluation: a table per metric for the terminal, and all of them as JSON and CSV."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.table import Table

from lampseg.evaluation.metrics.measures import METRICS, Metric
from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.statistics.bootstrap import LEVEL, RESAMPLES, SEED, Interval, Summary
from lampseg.evaluation.tables import ABSENT, csv_text, rich_table, write_text

AVERAGE, CASE_MEANS = "average", "case means"
"""The last rows of each table: the mean of the organs' means, and what is said of every case's mean over its organs."""

Row = tuple[str, str | None, Summary]
"""Metric, organ (None: case means) and summary."""


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Writes `evaluation.json`, `evaluation.csv`, `summary.json` and `summary.csv`, each whole or not at all.

    Raises:
        UserError: the folder cannot be written.
    """
    rows = list(_rows(evaluation))
    write_text(folder / "evaluation.json", evaluation.to_json())
    write_text(folder / "evaluation.csv", evaluation.to_csv())
    write_text(folder / "summary.json", _json(evaluation, rows))
    write_text(folder / "summary.csv", _csv(evaluation, rows))


def summary_table(evaluation: Evaluation, metric: str) -> Table:
    """One metric: a row per organ with mean, deviation, median, interval of the mean and number of cases."""
    about = METRICS[metric]
    *rows, last = [
        [name or CASE_MEANS, *_cells(about, summary)] for _, name, summary in _rows(evaluation, metrics=(metric,))
    ]
    header = ["organ", "mean", "sd", "median", "95 % CI of the mean", "n", "undefined"]
    title = about.heading + (f", tolerance {_tolerance_text(evaluation)}" if metric == "nsd" else "")
    average = [AVERAGE, about.text(evaluation.organ_average(metric)), *[""] * (len(header) - 2)]
    return rich_table(header, rows, footer=[average, last], title=title)


def summary_note(evaluation: Evaluation) -> str:
    """What a reader must know to read the tables."""
    return (
        "n: cases that enter. undefined: cases with the organ in one of the two maps only, so that the metric has no "
        "value; they enter no mean, and the means of HD95 and ASSD beside many of them flatter. CI: bootstrap over "
        f"cases. {CASE_MEANS}: of every case's mean over its organs. {evaluation.note()}"
    )


def _tolerance_text(evaluation: Evaluation) -> str:
    limits = sorted(set(evaluation.tolerance_mm))
    return " to ".join(f"{limit:g}" for limit in dict.fromkeys((limits[0], limits[-1]))) + " mm" if limits else ABSENT


def _rows(evaluation: Evaluation, *, metrics: tuple[str, ...] = ()) -> Iterator[Row]:
    """Every organ of every metric, each metric's case means last."""
    for metric in metrics or evaluation.metrics:
        for organ, summary in zip(evaluation.organs, evaluation.summary(metric), strict=True):
            yield metric, organ, summary
        yield metric, None, evaluation.case_summary(metric)


def _cells(metric: Metric, summary: Summary) -> list[str]:
    return [
        metric.text(summary.mean),
        metric.text(summary.sd),
        metric.text(summary.median),
        interval_text(metric, summary.interval),
        str(summary.count),
        str(summary.undefined or ""),
    ]


def interval_text(metric: Metric, interval: Interval | None) -> str:
    """Both ends of an interval."""
    return ABSENT if interval is None else f"{metric.text(interval.low)} to {metric.text(interval.high)}"


def _json(evaluation: Evaluation, rows: list[Row]) -> str:
    tree: dict[str, Any] = {
        "version": 1,
        "interval": {"of": "mean", "level": LEVEL, "method": "bootstrap, BCa", "resamples": RESAMPLES, "seed": SEED},
        "average": {metric: evaluation.organ_average(metric) for metric in evaluation.metrics},
        "organs": {},
        "case_means": {},
    }
    for metric, name, summary in rows:
        value = {
            "mean": summary.mean,
            "sd": summary.sd,
            "median": summary.median,
            "ci_low": summary.interval and summary.interval.low,
            "ci_high": summary.interval and summary.interval.high,
            "count": summary.count,
            "undefined": summary.undefined,
        }
        if name is None:
            tree["case_means"][metric] = value
        else:
            tree["organs"].setdefault(metric, {})[name] = value
    return json.dumps(tree, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def _csv(evaluation: Evaluation, rows: list[Row]) -> str:
    averages = [[metric, AVERAGE, evaluation.organ_average(metric), *[None] * 6] for metric in evaluation.metrics]
    cells: list[list[object]] = [
        [
            metric,
            name or CASE_MEANS,
            s.mean,
            s.sd,
            s.median,
            s.interval and s.interval.low,
            s.interval and s.interval.high,
            s.count,
            s.undefined,
        ]
        for metric, name, s in rows
    ]
    return csv_text(
        ["metric", "class", "mean", "sd", "median", "ci_low", "ci_high", "n", "undefined"], [*cells, *averages]
    )

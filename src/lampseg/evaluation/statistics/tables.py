"""Paired comparisons as a table, as JSON and as CSV."""

import json
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from lampseg.evaluation.metrics.measures import Metric
from lampseg.evaluation.score_tables import CASE_MEANS, interval_text
from lampseg.evaluation.statistics.bootstrap import LEVEL, RESAMPLES, SEED
from lampseg.evaluation.statistics.paired import PairedTest
from lampseg.evaluation.statistics.pairing import PairedComparison
from lampseg.evaluation.statistics.sentence import p_text, paired_sentence
from lampseg.evaluation.tables import ABSENT, csv_text, rich_table


def paired_table(comparison: PairedComparison) -> Table:
    """A row per class, then that of the cases' means."""
    metric = comparison.metric
    header = ["class", comparison.a, comparison.b, "difference", "95 % CI", "p", "p (Holm)", "effect", "w/t/l", "n"]
    rows = [[row.organ, *_cells(metric, row.test, row.p_holm)] for row in comparison.classes]
    footer = [[CASE_MEANS, *_cells(metric, comparison.overall, None)]]
    return rich_table(header, rows, footer=footer, title=f"{metric.heading}: {comparison.b} against {comparison.a}")


def _cells(metric: Metric, test: PairedTest, p_holm: float | None) -> list[str]:
    return [
        metric.text(test.mean_a),
        metric.text(test.mean_b),
        ABSENT if test.difference is None else f"{test.difference:+.{metric.decimals}f}",
        interval_text(metric, test.interval),
        p_text(test.p),
        p_text(p_holm),
        ABSENT if test.effect is None else f"{test.effect:+.2f}",
        f"{test.wins}/{test.ties}/{test.losses}",
        str(test.pairs),
    ]


def comparisons_json(comparisons: Sequence[PairedComparison]) -> str:
    """All numbers; the sentences are there for the reader."""
    first = comparisons[0]
    tree = {
        "version": 1,
        "a": first.a,
        "b": first.b,
        "shared_cases": first.cases,
        "cases_only_a": list(first.cases_only_a),
        "cases_only_b": list(first.cases_only_b),
        "classes_only_a": list(first.classes_only_a),
        "classes_only_b": list(first.classes_only_b),
        "other_truths": list(first.other_truths),
        "interval": {"of": "mean difference", "level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "metrics": {
            c.metric.name: {
                "unit": c.metric.unit,
                "better": c.metric.better,
                "sentence": paired_sentence(c),
                "case_means": _tree(c.overall),
                "classes": {
                    row.organ: {**_tree(row.test), "p_holm": row.p_holm, "only_a": row.only_a, "only_b": row.only_b}
                    for row in c.classes
                },
            }
            for c in comparisons
        },
    }
    return json.dumps(tree, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def comparisons_csv(comparisons: Sequence[PairedComparison]) -> str:
    """One row per metric and class, then that of the cases' means; p values with all their digits."""
    keys = list(_tree(comparisons[0].overall))
    rows: list[list[object]] = []
    for c in comparisons:
        for name, test, p in [*((r.organ, r.test, r.p_holm) for r in c.classes), (CASE_MEANS, c.overall, None)]:
            values = _tree(test) | {"p": None if test.p is None else f"{test.p:.6g}"}
            rows.append([c.metric.name, name, *values.values(), None if p is None else f"{p:.6g}"])
    return csv_text(["metric", "class", *keys, "p_holm"], rows)


def _tree(test: PairedTest) -> dict[str, Any]:
    return {
        "n": test.pairs,
        "mean_a": test.mean_a,
        "mean_b": test.mean_b,
        "difference": test.difference,
        "median_difference": test.median_difference,
        "ci_low": test.interval and test.interval.low,
        "ci_high": test.interval and test.interval.high,
        "wins": test.wins,
        "ties": test.ties,
        "losses": test.losses,
        "p": test.p,
        "method": test.method,
        "effect": test.effect,
    }

"""What the report makes of the scores of every case: any metric that the file holds, summaries, and the worst."""

import json
import statistics
from pathlib import Path

import pytest

from lampseg.evaluation import Comparison, write_report
from lampseg.evaluation.report.scores import scores_from_json, scores_of
from tests.unit.fake_run import comparison, make_run

TREE = {
    "version": 1,
    "organs": ["BrainStem", "Chiasm"],
    "cases": {"a": {"BrainStem": 0.9, "Chiasm": 0.5}, "b": {"BrainStem": 0.7, "Chiasm": None}},
    "metrics": {
        "dice": {"unit": "", "better": "higher"},
        "hd95": {"unit": "mm", "better": "lower"},
        "my_own": {"unit": "ml", "better": "nearer to 0"},
    },
    "scores": {
        "a": {
            "BrainStem": {"presence": "both", "dice": 0.9, "hd95": 1.5, "my_own": -2.0},
            "Chiasm": {"presence": "both", "dice": 0.5, "hd95": 4.25, "my_own": 1.0},
        },
        "b": {
            "BrainStem": {"presence": "both", "dice": 0.7, "hd95": 2.5, "my_own": 0.5},
            "Chiasm": {"presence": "neither", "dice": None, "hd95": None, "my_own": None},
        },
    },
    "unpredicted": [],
}


def test_every_metric_of_the_file_is_read_with_its_unit() -> None:
    scores = scores_from_json(json.dumps(TREE))
    assert [metric.heading for metric in scores.metrics] == ["Dice", "HD95 (mm)", "my own (ml)"]
    assert [metric.higher_is_better for metric in scores.metrics] == [True, False, None]
    assert scores.of_organ("hd95", "BrainStem") == [1.5, 2.5]
    assert scores.of_organ("hd95", "Chiasm") == [4.25]
    assert scores.of_case("my_own", "b") == {"BrainStem": 0.5, "Chiasm": None}
    assert scores.of_case("dice", "nobody") == {}


def test_dice_alone_is_enough() -> None:
    tree = {key: TREE[key] for key in ("organs", "cases")}
    scores = scores_from_json(json.dumps(tree))
    assert [metric.key for metric in scores.metrics] == ["dice"]
    assert scores.mean("dice", "BrainStem") == pytest.approx(0.8)


def test_summary_of_an_organ() -> None:
    scores = scores_from_json(json.dumps(TREE))
    sd = f"{statistics.stdev([0.9, 0.7]):.3f}"
    assert scores.summary_rows(scores.metrics[0]) == [
        ["BrainStem", "0.800", "0.700 to 0.900", sd, "0.800", "0.700", "0.900", "2"],
        ["Chiasm", "0.500", "-", "-", "0.500", "0.500", "0.500", "1"],
    ]
    assert scores.summary_rows(scores.metrics[1])[1] == ["Chiasm", "4.25", "-", "-", "4.25", "4.25", "4.25", "1"]


def test_the_worst_come_first_and_the_excluded_never() -> None:
    scores = scores_from_json(json.dumps(TREE))
    assert scores.worst(2) == (("a", "Chiasm", 0.5), ("b", "BrainStem", 0.7))
    assert len(scores.worst(99)) == 3


def test_the_report_shows_all_metrics_and_folds_all_but_dice(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "evaluation").mkdir()
    tree = {**TREE, "scores": json.loads(json.dumps(TREE["scores"]))}
    for organs in tree["scores"].values():
        for values in organs.values():
            values |= {"truth_ml": 1.0, "predicted_ml": 1.0}
    (run / "evaluation" / "evaluation.json").write_text(json.dumps(tree))
    html = write_report(run).read_text()
    folded = [part.split("</summary>")[0] for part in html.split("<summary>")[1:]]
    assert folded == ["HD95 (mm) of every organ and case", "my own (ml) of every organ and case"]
    assert "<td>BrainStem</td><td>0.800</td><td>2.00</td><td>-0.750</td>" in html, "the means side by side"
    assert "Lower is better." in html


def test_a_comparison_is_read_back(tmp_path: Path) -> None:
    value = comparison()
    path, _ = value.write(tmp_path)
    assert Comparison.from_json(path.read_text()) == value


def test_of_a_comparison_alone_the_first_row_s_cases_are_shown(tmp_path: Path) -> None:
    html = write_report(make_run(tmp_path / "run"), comparison=comparison()).read_text()
    assert "Evaluated cases: whole volume" in html
    assert "<td>a</td><td>0.900</td><td>0.500</td><td>0.800</td>" in html
    assert html.count("Box plots of Dice") == 1, "not once more for the same values"
    assert scores_of(comparison().rows[0].evaluation).worst(1) == (("a", "Chiasm", 0.5),)

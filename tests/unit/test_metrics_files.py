"""`evaluate` with all metrics: files, options, several processes, and what is refused before anything is scored."""

import csv
import io
import json
import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from lampseg.cli import main
from lampseg.errors import UserError
from lampseg.evaluation import METRICS, Evaluation, evaluate, summary_table
from lampseg.evaluation.metrics.measures import choose_metrics
from lampseg.evaluation.metrics.tolerances import tolerances
from lampseg.evaluation.tables import check_can_write
from lampseg.pool import map_cases
from tests.unit.test_evaluate import save

CASES = ("a", "b", "c")


def truth() -> np.ndarray:
    labels = np.zeros((12, 6, 5), np.uint8)
    labels[2:5, 1:5, 1:4] = 1
    labels[8, 2, 2] = 2
    return labels


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Case a is perfect, in b the first class is 2 mm off, in c the second is missed. Voxels are 1 x 1 x 2 mm."""
    for number, case in enumerate(CASES):
        predicted = truth()
        if number == 1:
            predicted[2:8] = np.roll(predicted[2:8], 2, axis=0)
        if number == 2:
            predicted[predicted == 2] = 0
        save(tmp_path / "labels" / f"{case}.nii.gz", truth())
        save(tmp_path / "predicted" / f"{case}.nii.gz", predicted)
    return tmp_path


def run(folder: Path, **options: object) -> Evaluation:
    return evaluate(folder / "predicted", folder / "labels", out=folder / "out", **options)


def column(evaluation: Evaluation, metric: str, organ: int) -> list[float | None]:
    return [case.values(metric)[organ] for case in evaluation.cases]


def test_metrics_reach_the_value_with_the_image_spacing(folder: Path) -> None:
    found = run(folder)
    assert found.metrics == tuple(METRICS)
    assert column(found, "hd95", 0) == pytest.approx([0.0, 2.0, 0.0])
    assert column(found, "hd95", 1) == [0.0, 0.0, None]
    assert column(found, "nsd", 1) == [1.0, 1.0, 0.0]
    assert column(found, "volume_error", 1) == pytest.approx([0.0, 0.0, -0.002])
    assert found.tolerance_mm == (2.0, 2.0)


def test_a_missed_organ_is_counted_and_makes_no_mean_infinite(folder: Path) -> None:
    first, second = run(folder).summary("hd95")
    assert (first.count, first.undefined) == (3, 0)
    assert (second.count, second.undefined, second.mean) == (2, 1, 0.0)
    tree = json.loads((folder / "out" / "summary.json").read_text())
    assert tree["organs"]["hd95"]["class 2"]["undefined"] == 1
    assert tree["organs"]["hd95"]["class 1"]["mean"] == pytest.approx(2 / 3)
    assert tree["average"]["hd95"] == pytest.approx(1 / 3)
    assert tree["case_means"]["hd95"]["mean"] == pytest.approx((0 + 1 + 0) / 3)
    rows = list(csv.DictReader(io.StringIO((folder / "out" / "summary.csv").read_text())))
    (row,) = (r for r in rows if (r["metric"], r["class"]) == ("hd95", "class 1"))
    assert (float(row["mean"]), float(row["median"]), row["n"]) == (pytest.approx(2 / 3, abs=1e-6), 0.0, "3")
    assert 0 <= float(row["ci_low"]) < 2 / 3 < float(row["ci_high"]) <= 2
    (average,) = (r for r in rows if (r["metric"], r["class"]) == ("hd95", "average"))
    assert (float(average["mean"]), average["sd"]) == (pytest.approx(1 / 3, abs=1e-6), "")


def test_the_json_comes_back_whole_and_its_old_keys_stay(folder: Path) -> None:
    found = run(folder, tolerance=("1", "class 2=3"))
    text = (folder / "out" / "evaluation.json").read_text()
    assert Evaluation.from_json(text) == found
    tree = json.loads(text)
    assert tree["tolerance_mm"] == {"class 1": 1.0, "class 2": 3.0}
    assert tree["scores"]["c"]["class 2"]["presence"] == "truth only"
    assert tree["cases"]["c"] == {"class 1": 1.0, "class 2": 0.0}
    assert tree["count"] == {"class 1": 3, "class 2": 3}
    old = {key: tree[key] for key in ("version", "organs", "average", "mean", "sd", "count", "cases", "unpredicted")}
    without = Evaluation.from_json(json.dumps(old))
    assert (without.metrics, without.average) == (("dice",), found.average)
    assert without.to_csv().splitlines()[0] == "case,class,presence,truth_ml,predicted_ml,dice"


@pytest.mark.parametrize("fault", [{"presence": "perhaps"}, {"truth_ml": "much"}, {"dice": None, "nsd": None}])
def test_scores_that_are_none_are_refused(folder: Path, fault: dict[str, object]) -> None:
    run(folder, metrics="hd95")
    tree = json.loads((folder / "out" / "evaluation.json").read_text())
    tree["scores"]["b"]["class 1"] |= fault
    with pytest.raises(UserError, match="not an evaluation"):
        Evaluation.from_json(json.dumps(tree))


def test_dice_is_measured_even_if_not_asked_for_and_surfaces_only_if(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(folder, metrics=["hd95"]).metrics == ("dice", "hd95")
    monkeypatch.delattr("lampseg.evaluation.metrics.case_scores.voxel_distances")
    monkeypatch.delattr("lampseg.evaluation.metrics.case_scores.surface_dice")
    assert run(folder, metrics="precision, jaccard").metrics == ("dice", "jaccard", "precision")


def test_progress_is_told_after_every_case(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    run(folder, metrics="dice", done=lambda *numbers: told.append(numbers))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_processes_answer_in_order_and_tell_their_progress() -> None:
    told: list[tuple[int, int]] = []
    assert map_cases(abs, [-3, 2, -1], jobs=2, done=lambda *numbers: told.append(numbers)) == [3, 2, 1]
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_fault_in_another_process_is_told_as_in_this() -> None:
    with pytest.raises(ValueError, match=r"invalid literal .* 'x'"):
        map_cases(int, ["1", "x", "2"], jobs=2)
    fault = UserError("file: the fault; the remedy")  # on its way from a process
    assert repr(pickle.loads(pickle.dumps(fault))) == repr(fault)


def test_a_process_that_is_killed_is_told() -> None:
    with pytest.raises(UserError, match="--jobs: a process was killed, most likely for want of memory; use --jobs 1"):
        map_cases(os._exit, [9, 9], jobs=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "--jobs: 0 is no number of processes"),
        ({"metrics": "dice,hd"}, "--metrics: `hd` is no metric; choose from dice, "),
        ({"metrics": " , "}, "--metrics: names no metric"),
        ({"tolerance": "-1"}, "--tolerance: `-1` is no number of mm"),
        ({"tolerance": "inf"}, "`inf` is no number of mm"),
        ({"tolerance": ["class 1="]}, "`class 1=` is no number of mm"),
        ({"tolerance": ["clas 1=2"]}, "no class `clas 1`; did you mean `class 1`"),
        ({"tolerance": ["2", "3"]}, "all classes given twice"),
    ],
)
def test_options_that_are_refused(folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        run(folder, **options)
    assert not (folder / "out").exists()


def test_tolerances_of_single_classes_beside_that_of_the_others() -> None:
    organs = ("Chiasm", "BrainStem", "a=b")
    assert tolerances(1.5, organs=organs) == (1.5, 1.5, 1.5)
    assert tolerances(["a=b=0", "Chiasm = 2.5"], organs=organs) == (2.5, 2.0, 0.0)
    assert tolerances(["3", "Chiasm=2.5"], organs=organs) == (2.5, 3.0, 3.0)


def test_metrics_come_in_the_order_of_tables() -> None:
    assert choose_metrics("nsd,dice") == ("dice", "nsd")
    assert choose_metrics(("all", "dice")) == tuple(METRICS)


def test_a_place_that_cannot_be_written_is_found_before_scoring(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("")
    monkeypatch.delattr(sys.modules["lampseg.evaluation.evaluate"], "score_case")
    with pytest.raises(UserError, match=r"deep/evaluation\.json: cannot be written \(Not a directory\)"):
        evaluate(folder / "predicted", folder / "labels", out=folder / "file" / "deep")


def test_trying_to_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    check_can_write(Path("new") / "deep" / "file.json")
    assert list(tmp_path.iterdir()) == []


def test_a_label_map_of_several_channels_is_refused(folder: Path) -> None:
    save(folder / "predicted" / "a.nii.gz", np.zeros((12, 6, 5, 2), np.uint8))
    with pytest.raises(UserError, match=r"a\.nii\.gz: 2 channels, but a label map has one number per voxel"):
        run(folder)


@pytest.fixture
def printed(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "120")
    folders = ["--predictions", str(folder / "predicted"), "--labels", str(folder / "labels")]
    options = ["--metrics", "dice,nsd", "--tolerance", "1", "class 2=3"]
    main(["evaluate", *folders, "--out", str(folder / "out"), *options])
    return capsys.readouterr().out


def test_the_command_prints_a_table_per_metric(folder: Path, printed: str) -> None:
    assert "Surface Dice, tolerance 1 to 3 mm" in printed
    assert "HD95 (mm)" not in printed
    tree = json.loads((folder / "out" / "summary.json").read_text())
    for organ in ("class 1", "class 2"):
        values = tree["organs"]["dice"][organ]
        shown = [f"{values[key]:.3f}" for key in ("mean", "sd", "median")]
        interval = f"{values['ci_low']:.3f} to {values['ci_high']:.3f}"
        row = next(line for line in printed.splitlines() if line.startswith(f"│ {organ}"))
        assert [cell.strip() for cell in row.strip("│").split("│")] == [organ, *shown, interval, "3", ""]


def test_a_title_has_the_only_tolerance(folder: Path) -> None:
    assert str(summary_table(run(folder, tolerance=1.5), "nsd").title) == "Surface Dice, tolerance 1.5 mm"

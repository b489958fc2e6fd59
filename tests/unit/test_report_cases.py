"""Which files the report shows: pairing by name, the worst results, the choice of cases, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from lampseg.commands.report import ReportOptions, chosen_cases, report
from lampseg.errors import UserError
from lampseg.evaluation import evaluate
from lampseg.evaluation.report.case_files import CaseFiles, class_names, find_cases
from lampseg.evaluation.report.scores import scores_of
from lampseg.evaluation.report.worst_cases import worst_section
from tests.unit.fake_cases import NAMES, SHAPE, make_cases, save
from tests.unit.fake_run import make_run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_cases(tmp_path_factory.mktemp("cases"))


def test_images_and_truths_are_found_by_the_data_set(folders: tuple[Path, Path]) -> None:
    data, predictions = folders
    expected = [
        CaseFiles(
            name,
            data / "imagesTs" / f"{name}.nii.gz",
            data / "labelsTs" / f"{name}.nii.gz",
            predictions / f"{name}.nii.gz",
        )
        for name in ("case_a", "case_b")
    ]
    for labels in (data, data / "labelsTs"):
        found = find_cases(predictions, labels)
        assert [case.name for case in found] == ["case_a", "case_b"]
        assert [(c.image, c.truth, c.prediction) for c in found] == [(e.image, e.truth, e.prediction) for e in expected]
        assert class_names(labels) == NAMES


def test_images_are_found_by_option_and_by_the_record_of_predict(tmp_path: Path) -> None:
    data, predictions = make_cases(tmp_path)
    (data / "dataset.json").unlink()
    with pytest.raises(UserError, match=r"no image is named like a prediction .* by --images"):
        find_cases(predictions, data / "labelsTs")
    found = find_cases(predictions, data / "labelsTs", images=data / "imagesTs")
    assert [case.image.name for case in found] == ["case_a.nii.gz", "case_b.nii.gz"]
    (data / "imagesTs" / "case_a.nii.gz").rename(data / "imagesTs" / "case_a_0000.nii.gz")
    found = find_cases(predictions, data / "labelsTs", images=data / "imagesTs")
    assert found[0].image.name == "case_a_0000.nii.gz", "as in nnU-Net's folders"
    record = {"predictions": [{"image": str(data / "imagesTs" / "case_b.nii.gz"), "output": "case_b.nii.gz"}]}
    (predictions / "predictions.json").write_text(json.dumps(record))
    (only,) = find_cases(predictions, None)
    assert (only.name, only.truth) == ("case_b", None)
    assert class_names(data / "labelsTs") is None


def test_worst_results_are_shown_through_their_error(folders: tuple[Path, Path], tmp_path: Path) -> None:
    data, predictions = folders
    scores = scores_of(evaluate(predictions, data, out=tmp_path))
    section = worst_section(scores, find_cases(predictions, data), count=2, class_names=NAMES)
    table, *pictures = section.parts
    assert [row[0] for row in table.rows] == ["case_b: Parotid_<L>", "case_a: BrainStem"]
    assert [row[1] for row in table.rows] == ["0.000", "0.800"]
    assert [part.kind for part in pictures] == ["picture", "picture"]
    assert pictures[0].caption.startswith("case_b, Parotid_<L>: Dice 0.000.")
    without = worst_section(scores, [], count=2, class_names=NAMES)
    assert [part.kind for part in without.parts] == ["table", "text"]


def test_a_label_map_on_another_grid_is_refused(tmp_path: Path) -> None:
    data, predictions = make_cases(tmp_path)
    scores = scores_of(evaluate(predictions, data, out=tmp_path / "out"))
    save(predictions / "case_b.nii.gz", np.zeros((4, 4, 4), np.uint8))
    with pytest.raises(UserError, match=r"case_b\.nii\.gz: shape \(4, 4, 4\), but .* has \(40, 36, 32\)"):
        worst_section(scores, find_cases(predictions, data), count=2, class_names=NAMES)
    save(predictions / "case_b.nii.gz", np.full(SHAPE, 0.5, np.float32))
    with pytest.raises(UserError, match=r"case_b\.nii\.gz: holds values that are not classes"):
        worst_section(scores, find_cases(predictions, data), count=2, class_names=NAMES)


def test_cases_are_chosen_by_name_or_from_the_worst_on(folders: tuple[Path, Path], tmp_path: Path) -> None:
    data, predictions = folders
    scores = scores_of(evaluate(predictions, data, out=tmp_path))
    cases = find_cases(predictions, data)
    assert chosen_cases(["1"], cases, scores=scores) == ("case_b",)
    assert chosen_cases(["9"], cases, scores=scores) == ("case_b", "case_a")
    assert chosen_cases(["0"], cases, scores=scores) == ()
    assert chosen_cases(["1"], cases, scores=None) == ("case_a",)
    assert chosen_cases(["case_a"], cases, scores=scores) == ("case_a",)
    named = [CaseFiles("3", Path("x"))]
    assert chosen_cases(["3"], named, scores=None) == ("3",), "a case may be called like a number"
    with pytest.raises(UserError, match=r"--viewer: there is no case `case_c` .* there are case_a, case_b"):
        chosen_cases(["case_c"], cases, scores=scores)


def test_report_of_given_predictions(folders: tuple[Path, Path], tmp_path: Path) -> None:
    data, predictions = folders
    run = make_run(tmp_path / "run")
    page = report(run, ReportOptions(predictions=predictions, labels=data, out=tmp_path / "page.html", worst=1))
    html = page.read_text()
    assert page == tmp_path / "page.html"
    assert not (run / "report.html").exists()
    assert "Its average Dice on 2 evaluated cases is" in html
    assert html.count('id="viewer-case-') == 1
    assert '<option value="0">case_b</option>' in html
    evaluate(predictions, data, out=tmp_path)
    options = ReportOptions(evaluation=tmp_path / "evaluation.json", worst=0)
    again = report(run, options).read_text()
    assert "Its average Dice on 2 evaluated cases is" in again
    assert "Worst results" not in again
    assert 'id="viewer"' not in again


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"labels": Path("x")}, "--labels and --images belong to predictions"),
        ({"worst": -1}, "--worst: -1 is below 0"),
        ({"viewer_bytes": 5}, "--viewer-size: 5e-06 MB is too little"),
        ({"out": Path()}, "is a folder; give --out the name of a file"),
        ({"evaluation": Path("none.json")}, "none.json: cannot be read"),
        ({"comparison": Path("none.json")}, "none.json: cannot be read"),
        ({"predictions": Path("none")}, "none: no such folder"),
        ({"viewer": ("x",)}, "there is no case `x` .* give --predictions"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], said: str, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "report.html").write_text("the old page")
    with pytest.raises(UserError, match=said):
        report(run, ReportOptions(**options))  # type: ignore[arg-type]
    assert (run / "report.html").read_text() == "the old page"


def test_no_comparison(tmp_path: Path) -> None:
    path = tmp_path / "comparison.json"
    for text in ("[]", '{"rows": []}', '{"rows": [{"method": "x"}]}'):
        path.write_text(text)
        with pytest.raises(UserError, match=r"comparison\.json: (not a comparison|a comparison has at least one row)"):
            report(make_run(tmp_path / f"run{len(text)}"), ReportOptions(comparison=path))

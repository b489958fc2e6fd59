"""`evaluate`: pairing by name, absent annotations, the three outputs, and every fault of the input."""

import csv
import io
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from rich.console import Console

from lampseg.errors import UserError
from lampseg.evaluation import METRICS, Evaluation, evaluate
from lampseg.evaluation.tables import write_text

NAMES = ("background", "Parotid_L", "Chiasm")
SHAPE = (6, 5, 4)


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0]) if affine is None else affine), path)
    return path


def truth(case: int) -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 1:4, 1:3] = 1
    labels[4, case, :2] = 2
    return labels


def shifted(labels: np.ndarray) -> np.ndarray:
    """A prediction that is wrong in a known way: the first organ one voxel to the right."""
    moved = np.roll(np.where(labels == 1, labels, 0), 1, axis=0)
    return np.where(labels == 2, 2, moved).astype(np.uint8)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """MSD layout: one training case, three test cases of which the second lacks the chiasm."""
    root = tmp_path / "set"
    entries = []
    for case in range(4):
        part = "Tr" if case == 0 else "Ts"
        name = f"case_{case}.nii.gz"
        save(root / f"images{part}" / name, np.zeros(SHAPE, np.float32))
        save(root / f"labels{part}" / name, truth(case))
        entry = {"image": f"./images{part}/{name}", "label": f"./labels{part}/{name}"}
        entries.append(entry | ({"not_annotated": ["Chiasm"]} if case == 2 else {}))
    tree = {
        "name": "phantom",
        "labels": {str(i): name for i, name in enumerate(NAMES)},
        "training": entries[:1],
        "test": entries[1:],
    }
    (root / "dataset.json").write_text(json.dumps(tree))
    return root


@pytest.fixture
def predictions(tmp_path: Path) -> Path:
    for case in (1, 2, 3):
        save(tmp_path / "predicted" / f"case_{case}.nii.gz", shifted(truth(case)))
    return tmp_path / "predicted"


def counted(case: int, value: int) -> float:
    """Dice of the shifted prediction, counted here."""
    a, b = shifted(truth(case)) == value, truth(case) == value
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_scores_by_case_and_organ_without_those_not_annotated(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    result = evaluate(predictions, dataset / "labelsTs", out=tmp_path / "out")
    assert result.organs == NAMES[1:]
    assert [c.case for c in result.cases] == ["case_1", "case_2", "case_3"]
    assert [c.dice[0] for c in result.cases] == pytest.approx([counted(c, 1) for c in (1, 2, 3)])
    assert [c.dice[1] for c in result.cases] == [1.0, None, 1.0]
    parotid, chiasm = result.per_organ
    assert (parotid.count, chiasm.count) == (3, 2)
    assert parotid.mean == pytest.approx(np.mean([counted(c, 1) for c in (1, 2, 3)]))
    assert parotid.sd == pytest.approx(np.std([counted(c, 1) for c in (1, 2, 3)], ddof=1))
    assert result.average == pytest.approx((parotid.mean + 1.0) / 2)
    assert result.by_organ() == {"Parotid_L": parotid.mean, "Chiasm": 1.0}


def test_a_dataset_folder_serves_as_labels(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    by_folder = evaluate(predictions, dataset / "labelsTs", out=tmp_path / "a")
    assert evaluate(predictions, dataset, out=tmp_path / "b") == by_folder


def test_without_dataset_json_classes_are_numbered(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    (dataset / "dataset.json").unlink()
    result = evaluate(predictions, dataset / "labelsTs", out=tmp_path / "out")
    assert result.organs == ("class 1", "class 2")
    assert [c.dice[1] for c in result.cases] == [1.0, 1.0, 1.0]


def test_a_test_case_listed_without_its_label_is_masked_too(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    tree = json.loads((dataset / "dataset.json").read_text())
    for entry in tree["test"]:
        del entry["label"]
    (dataset / "dataset.json").write_text(json.dumps(tree))
    result = evaluate(predictions, dataset / "labelsTs", out=tmp_path / "out")
    assert [c.dice[1] for c in result.cases] == [1.0, None, 1.0]


def test_images_named_otherwise_than_labels_are_paired_through_dataset_json(dataset: Path, tmp_path: Path) -> None:
    """nnU-Net: image `x_0000.nii.gz`, label `x.nii.gz`; predictions carry the image's name."""
    (dataset / "imagesTs" / "case_1.nii.gz").rename(dataset / "imagesTs" / "case_1_0000.nii.gz")
    text = (dataset / "dataset.json").read_text().replace("imagesTs/case_1.nii.gz", "imagesTs/case_1_0000.nii.gz")
    (dataset / "dataset.json").write_text(text)
    save(tmp_path / "predicted" / "case_1_0000.nii.gz", truth(1))
    result = evaluate(tmp_path / "predicted", dataset / "labelsTs", out=tmp_path / "out")
    assert [(c.case, c.dice) for c in result.cases] == [("case_1_0000", (1.0, 1.0))]


def test_cases_without_prediction_are_named(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    (predictions / "case_2.nii.gz").unlink()
    result = evaluate(predictions, dataset, out=tmp_path / "out")
    assert result.unpredicted == ("case_2",)  # and not case_0: no training case was predicted
    assert "1 (case_2)" in result.note()


def test_json_comes_back_equal_and_csv_has_a_row_per_case(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    result = evaluate(predictions, dataset / "labelsTs", out=tmp_path / "deep" / "out")
    folder = tmp_path / "deep" / "out"
    files = ["evaluation.csv", "evaluation.json", "summary.csv", "summary.json"]
    assert sorted(p.name for p in folder.iterdir()) == files
    text = (folder / "evaluation.json").read_text()
    assert Evaluation.from_json(text) == result
    assert json.loads(text)["cases"]["case_2"]["Chiasm"] is None
    rows = list(csv.DictReader(io.StringIO((folder / "evaluation.csv").read_text())))
    keys = ["case", "class", "presence", "truth_ml", "predicted_ml"]
    assert list(rows[0]) == [*keys, *METRICS]
    assert [(row["case"], row["class"]) for row in rows] == [
        (f"case_{case}", organ) for case in (1, 2, 3) for organ in NAMES[1:]
    ]
    assert float(rows[0]["dice"]) == pytest.approx(counted(1, 1), abs=1e-6)
    assert (rows[3]["presence"], rows[3]["dice"], rows[3]["truth_ml"]) == ("not annotated", "", "")


def test_table_shows_every_organ_and_no_markup() -> None:
    result = Evaluation.from_cases({"a": (0.5, None), "b": (0.7, None)}, class_names=("bg", "[red]Liver", "Tumor"))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(result.table())
    lines = console.export_text().splitlines()
    assert any(line.split()[1:8:2] == ["[red]Liver", "0.600", "0.141", "2"] for line in lines)
    assert any(line.split()[1:8:2] == ["Tumor", "-", "-", "0"] for line in lines)
    assert any("average" in line and "0.600" in line for line in lines)


def test_nothing_scored_has_no_average() -> None:
    result = Evaluation.from_cases({"a": (None, float("nan"))}, class_names=NAMES)
    assert result.average is None
    assert result.cases[0].dice == (None, None)
    assert Evaluation.from_json(result.to_json()) == result


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"organs": ["a"], "cases": {"x": {}}}'])
def test_a_file_that_is_no_evaluation_is_named(text: str) -> None:
    with pytest.raises(UserError, match=r"somewhere/evaluation\.json: not an evaluation"):
        Evaluation.from_json(text, source="somewhere/evaluation.json")


def test_folders_that_are_missing_or_empty(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "._case_1.nii.gz").write_bytes(b"left by an archive")
    with pytest.raises(UserError, match="nowhere: no such folder of predictions"):
        evaluate(tmp_path / "nowhere", dataset, out=tmp_path / "out")
    with pytest.raises(UserError, match="empty: no predictions"):
        evaluate(empty, dataset, out=tmp_path / "out")
    with pytest.raises(UserError, match="nowhere: no such folder of labels"):
        evaluate(predictions, tmp_path / "nowhere", out=tmp_path / "out")
    with pytest.raises(UserError, match="empty: no label maps"):
        evaluate(predictions, empty, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_prediction_without_label_is_named(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    save(predictions / "stranger.nii.gz", truth(0))
    with pytest.raises(UserError, match=r"no label in .*labelsTs for stranger"):
        evaluate(predictions, dataset / "labelsTs", out=tmp_path / "out")


def test_a_case_predicted_twice_is_refused(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    save(predictions / "case_1.nii", truth(1))
    with pytest.raises(UserError, match=r"also predicted in case_1\.nii"):
        evaluate(predictions, dataset, out=tmp_path / "out")


def test_another_grid_is_refused(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    save(predictions / "case_1.nii.gz", np.zeros((6, 5, 3), np.uint8))
    with pytest.raises(UserError, match=r"case_1\.nii\.gz: shape \(6, 5, 3\), but its label .* \(6, 5, 4\)"):
        evaluate(predictions, dataset, out=tmp_path / "out")
    flipped = np.diag([-1.0, 1.0, 2.0, 1.0])
    save(predictions / "case_1.nii.gz", truth(1), flipped)
    with pytest.raises(UserError, match=r"case_1\.nii\.gz: affine .*-1\.0"):
        evaluate(predictions, dataset, out=tmp_path / "out")


@pytest.mark.parametrize(("value", "dtype"), [(3, np.uint8), (-1, np.int16), (0.5, np.float32)])
def test_values_that_are_no_class_are_refused(
    dataset: Path, predictions: Path, tmp_path: Path, value: float, dtype: type
) -> None:
    labels = truth(3).astype(dtype)
    labels[0, 0, 0] = value
    save(predictions / "case_3.nii.gz", labels)
    with pytest.raises(UserError, match=rf"case_3\.nii\.gz: 1 voxels hold {value:g}, .* classes 0 to 2"):
        evaluate(predictions, dataset, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_without_any_organ_and_without_names(tmp_path: Path) -> None:
    save(tmp_path / "p" / "a.nii.gz", truth(1))
    save(tmp_path / "l" / "a.nii.gz", np.zeros(SHAPE, np.uint8))
    with pytest.raises(UserError, match="no label holds any organ"):
        evaluate(tmp_path / "p", tmp_path / "l", out=tmp_path / "out")


def test_a_truncated_prediction_is_named(dataset: Path, predictions: Path, tmp_path: Path) -> None:
    path = predictions / "case_2.nii.gz"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match=r"case_2\.nii\.gz"):
        evaluate(predictions, dataset, out=tmp_path / "out")


def test_an_output_that_cannot_be_written_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_text(tmp_path / "evaluation.json", "old")

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match=r"evaluation\.json: cannot be written \(No space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match="cannot be written"):
        write_text(path / "below a file" / "x.json", "new")

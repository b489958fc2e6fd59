"""Folders -> cases: which layout it is, names, missing annotations, the split, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from lampseg.data import Case, Dataset, read_dataset, split_training
from lampseg.data.dataset import format_of
from lampseg.errors import UserError
from tests.unit.format_folders import nnunet_folder, organ_case, touch

LABELS = {"0": "background", "1": "liver", "2": "cancer"}


def entry(name: str, **extra: Any) -> dict[str, Any]:
    return {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz", **extra}


def make(root: Path, training: Any, *, test: Any = None, labels: Any = None, **extra: Any) -> Path:
    """A dataset.json and an empty file for every path it lists."""
    tree = {"name": "Liver", "labels": LABELS if labels is None else labels, "training": training, **extra}
    if test is not None:
        tree["test"] = test
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(tree))
    listed = [*training, *(test or [])] if isinstance(training, list) else []
    for item in listed:
        for path in [item] if isinstance(item, str) else item.values() if isinstance(item, dict) else []:
            if isinstance(path, str):
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).touch()
    return root


def numbered(count: int) -> Dataset:
    names = [f"liver_{i}" for i in range(count)]
    return Dataset(
        Path(), "Liver", tuple(LABELS.values()), tuple(Case(n, (Path(n),), Path(n), None) for n in names), ()
    )


def test_reads_the_msd_layout(tmp_path: Path) -> None:
    root = make(tmp_path, [entry("liver_0"), entry("liver_1")], test=["./imagesTs/liver_2.nii.gz"])
    dataset = read_dataset(root)
    assert dataset.name == "Liver"
    assert dataset.classes == ("background", "liver", "cancer")
    assert [case.id for case in dataset.training] == ["liver_0", "liver_1"]
    assert dataset.training[0].label == root / "labelsTr/liver_0.nii.gz"
    assert dataset.training[0].annotated is None
    assert [(case.id, case.label) for case in dataset.test] == [("liver_2", None)]


def test_a_test_case_may_have_a_label(tmp_path: Path) -> None:
    root = make(tmp_path, [entry("a")], test=[{"image": "imagesTs/b.nii", "label": "labelsTs/b.nii"}])
    (case,) = read_dataset(root, format="msd").test
    assert (case.id, case.label) == ("b", root / "labelsTs/b.nii")


def test_label_values_order_the_classes_in_either_notation(tmp_path: Path) -> None:
    msd = make(tmp_path / "msd", [entry("a")], labels={"2": "cancer", "0": "background", "1": "liver"})
    nnunet = make(tmp_path / "nnunet", [entry("a")], labels={"background": 0, "cancer": 2, "liver": "1"})
    assert read_dataset(msd).classes == read_dataset(nnunet).classes == ("background", "liver", "cancer")


def test_apple_double_entries_are_skipped(tmp_path: Path) -> None:
    root = make(tmp_path, [entry("._liver_14"), entry("liver_14")], test=["./imagesTs/._liver_9.nii.gz"])
    dataset = read_dataset(root)
    assert [case.id for case in dataset.training] == ["liver_14"]
    assert dataset.test == ()


def test_not_annotated_is_recorded_by_class_index(tmp_path: Path) -> None:
    root = make(tmp_path, [entry("a", not_annotated=["liver"]), entry("b", not_annotated=[])])
    first, second = read_dataset(root).training
    assert first.annotated == (2,)
    assert second.annotated is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "background", "2": "liver"}, r"values \[0, 2\]; they must be 0, 1, 2"),
        ({"1": "liver", "2": "cancer"}, "without gaps"),
        ({"background": 0, "tumour": [1, 2]}, "'tumour' has the value"),
        ({"0": "background", "1": "liver", "2": "liver"}, "liver more than once"),
        ({"0": "background"}, "1 classes"),
        (["background", "liver"], "must be an object"),
        ({}, "must be an object"),
    ],
)
def test_bad_labels_are_refused(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_dataset(make(tmp_path, [entry("a")], labels=labels))


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ([], "`training` lists no case"),
        ([entry("._a")], "`training` lists no case"),
        ({"image": "a"}, "must be a list"),
        ([3], r"training\[0\]: expected"),
        ([{"label": "labelsTr/a.nii.gz"}], r"training\[0\]: expected"),
        ([{"image": "imagesTr/a.nii.gz", "label": 3}], "`label` must be a path"),
        (["imagesTr/a.nii.gz"], "a has no `label`"),
        ([entry("a"), entry("b"), entry("a")], "a listed more than once"),
        ([entry("a", not_annotated=["spleen"])], "names spleen, which `labels` does not; the organs are liver, cancer"),
        ([entry("a", not_annotated=["background"])], "names background"),
        ([entry("a", not_annotated="liver")], "must be a list of organ names"),
        ([entry("a", not_annotated=["liver", "cancer"])], "no organ is annotated"),
    ],
)
def test_bad_training_lists_are_refused(tmp_path: Path, training: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_dataset(make(tmp_path, training))


def test_a_test_case_that_is_trained_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`training` and `test` together"):
        read_dataset(make(tmp_path, [entry("a")], test=["imagesTs/a.nii.gz"]))


@pytest.mark.parametrize("lost", ["imagesTr/b.nii.gz", "labelsTr/b.nii.gz", "imagesTs/c.nii.gz"])
def test_missing_files_are_named(tmp_path: Path, lost: str) -> None:
    root = make(tmp_path, [entry("a"), entry("b")], test=["imagesTs/c.nii.gz"])
    (root / lost).unlink()
    with pytest.raises(UserError, match=f"1 listed file.*{lost}"):
        read_dataset(root)


def test_of_many_missing_files_the_first_are_named(tmp_path: Path) -> None:
    root = make(tmp_path, [entry(f"liver_{i}") for i in range(10)])
    for path in (root / "labelsTr").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"10 listed.*liver_0.*liver_4\.nii\.gz and 5 more"):
        read_dataset(root)


def test_no_dataset_json(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere: no such file or folder; data\.root must be a dataset's folder"):
        read_dataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"dataset\.json: no such file; data\.root must be a folder"):
        read_dataset(tmp_path / "nowhere", format="msd")


@pytest.mark.parametrize("text", ['{"name": ', "[1, 2]", "\x00"])
def test_broken_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=r"dataset\.json: (not valid JSON|expected an object)"):
        read_dataset(tmp_path)


@pytest.mark.parametrize("key", ["labels", "training"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    tree = {"labels": LABELS, "training": []}
    del tree[key]
    (tmp_path / "dataset.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=f"the key `{key}` is missing"):
        read_dataset(tmp_path)


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'dicom' is not known"):
        read_dataset(make(tmp_path, [entry("a")]), format="dicom")


@pytest.mark.parametrize(
    ("count", "fraction", "held_out"),
    [(10, 0.2, 2), (10, 0.0, 0), (10, 0.01, 1), (2, 0.2, 1), (1, 0.5, 0), (10, 1.0, 9), (2, 1.0, 1)],
)
def test_size_of_the_split(count: int, fraction: float, held_out: int) -> None:
    training, validation = split_training(numbered(count), fraction=fraction, seed=0)
    assert len(validation) == held_out
    assert sorted(c.id for c in training + validation) == sorted(c.id for c in numbered(count).training)
    assert set(training).isdisjoint(validation)


def test_the_split_depends_on_seed_and_ids_only() -> None:
    dataset = numbered(20)
    reordered = Dataset(dataset.root, dataset.name, dataset.classes, dataset.training[::-1], ())
    _, held_out = split_training(dataset, fraction=0.3, seed=5)
    assert set(held_out) == set(split_training(reordered, fraction=0.3, seed=5)[1])
    assert len({split_training(dataset, fraction=0.3, seed=seed)[1] for seed in range(10)}) > 1


def test_a_folder_is_recognised_by_its_content(tmp_path: Path) -> None:
    make(tmp_path / "msd", [entry("a")], channel_names={"0": "CT"})
    nnunet_folder(tmp_path / "nnunet", training=[entry("a")])
    organ_case(tmp_path / "pddca/0522c0001")
    organ_case(tmp_path / "anatomynet/0522c0001", npy=True)
    organ_case(tmp_path / "anatomynet/0522c0001")
    touch(tmp_path, "cases.csv", "list.json", "notes.txt", "empty/x")
    expected = {name: name for name in ("msd", "nnunet", "pddca", "anatomynet")}
    expected |= {"cases.csv": "listing", "list.json": "listing"}
    found = {path.name: format_of(path) for path in tmp_path.iterdir()}
    assert found == {**expected, "notes.txt": None, "empty": None}


def test_a_folder_one_level_too_high_or_low(tmp_path: Path) -> None:
    right = make(tmp_path / "data/Task03_Liver", [entry("a")])
    for wrong in (tmp_path, tmp_path / "data", right / "imagesTr"):
        with pytest.raises(UserError, match=f"no dataset is recognised here.*; {right} would be right: set data.root"):
            read_dataset(wrong)
        with pytest.raises(UserError, match=rf"dataset\.json: no such file.*; {right} would be right"):
            read_dataset(wrong, format="msd")
    organ_case(tmp_path / "cases/han/0522c0001")
    with pytest.raises(UserError, match=r"there is no CASE/img\.nrrd, in this folder.*; .*cases/han would be right"):
        read_dataset(tmp_path / "cases/han/0522c0001", format="pddca")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            ["imagesTr/a.nii.gz", "labelsTr/a.nii.gz"],
            r"Found: imagesTr/, labelsTr/; imagesTr is here, but dataset\.json is",
        ),
        (["0522c0001/structures/Chiasm.nrrd"], r"0522c0001 has structures, but no img\.nrrd"),
        (["cases.csv"], r"Found: cases\.csv; .*cases\.csv would be right"),
        ([], "Found: nothing; a dataset in another layout can be listed in a CSV file"),
        ([".DS_Store"], "Looked for: .*nnU-Net.*MSD.*AnatomyNet.*PDDCA.*lists cases. Found: nothing"),
        ([f"scan{n}.mha" for n in range(9)], r"Found: scan0\.mha, .*scan4\.mha and 4 more"),
        (["broken/dataset.json"], "Found: broken/; a dataset in another layout"),
    ],
)
def test_what_was_looked_for_and_found(tmp_path: Path, files: list[str], message: str) -> None:
    root = tmp_path / "outer/root"
    root.mkdir(parents=True)
    touch(root, *files)
    with pytest.raises(UserError, match=message):
        read_dataset(root)


@pytest.mark.parametrize(
    ("name", "format", "message"),
    [
        ("scans.zip", "auto", "is no listing; data.root must be"),
        ("dataset.json", "auto", "give the folder that it lies in"),
        ("dataset.json", "listing", "is no listing"),
        ("", "listing", "is a folder; data.format `listing` needs the path"),
        ("nowhere.csv", "listing", "no such file; data.root must be the listing itself"),
        ("", "anatomynet", r"there is no CASE/img_crp_v2\.npy"),
        ("", "nnunet", r"dataset\.json: no such file"),
    ],
)
def test_a_root_that_is_not_of_the_stated_format(tmp_path: Path, name: str, format: str, message: str) -> None:
    if name and name != "nowhere.csv":
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path / name, format=format)

"""Listings of cases in CSV and JSON, and what is wrong with them, by line."""

import json
from pathlib import Path
from typing import Any

import pytest

from lampseg.data import read_dataset, split_training
from lampseg.errors import UserError
from tests.unit.format_folders import LABELS, touch

HEAD = "id,image,label,split,not_annotated\n"


def listing(root: Path, text: str, *, names: Any = LABELS, files: bool = True) -> Path:
    """cases.csv, labels.json, and the files a.nii.gz to f.nii.gz and a-seg.nii.gz to f-seg.nii.gz."""
    (root / "cases.csv").write_text(text)
    if names is not None:
        (root / "labels.json").write_text(json.dumps(names))
    if files:
        touch(root, *(f"scans/{name}{kind}.nii.gz" for name in "abcdef" for kind in ("", "-seg")))
    return root / "cases.csv"


def test_reads_every_column(tmp_path: Path) -> None:
    text = (
        f"\ufeff{HEAD}p1,scans/a.nii.gz;scans/b.nii.gz,scans/a-seg.nii.gz,train,liver\n"
        'p2, "scans/c.nii.gz; scans/d.nii.gz",scans/c-seg.nii.gz,,\n\n,scans/e.nii.gz;scans/f.nii.gz,,test,\n'
    )
    source = listing(tmp_path, text)
    dataset = read_dataset(source)
    assert (dataset.root, dataset.name, dataset.channels) == (tmp_path, "cases", ("channel 0", "channel 1"))
    first, second = dataset.training
    assert (first.id, first.annotated) == ("p1", (2,))
    assert first.images == (tmp_path / "scans/a.nii.gz", tmp_path / "scans/b.nii.gz")
    assert first.label == tmp_path / "scans/a-seg.nii.gz"
    assert (second.id, second.annotated, len(second.images)) == ("p2", None, 2)
    assert [(case.id, case.label) for case in dataset.test] == [("e", None)]
    assert dataset.validation is None
    assert dataset == read_dataset(source, format="listing")


def test_json_holds_the_same(tmp_path: Path) -> None:
    source = listing(tmp_path, f"{HEAD}p1,scans/a.nii.gz,scans/a-seg.nii.gz,train,liver\n,scans/b.nii.gz,,test,\n")
    rows = [
        {"id": "p1", "image": "scans/a.nii.gz", "label": "scans/a-seg.nii.gz", "not_annotated": ["liver"]},
        {"image": ["scans/b.nii.gz"], "split": "test"},
    ]
    tree = {"name": "cases", "labels": LABELS, "cases": rows}
    (tmp_path / "list.json").write_text(json.dumps(tree))
    assert read_dataset(tmp_path / "list.json") == read_dataset(source)
    named = {"labels": LABELS, "channel_names": {"0": "CT"}, "name": "Liver"}
    dataset = read_dataset(listing(tmp_path, f"{HEAD}p1,scans/a.nii.gz,scans/a-seg.nii.gz,,\n", names=named))
    assert (dataset.name, dataset.channels) == ("Liver", ("CT",))


def test_paths_may_be_absolute_and_columns_in_any_order(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    touch(tmp_path, "x.nii", "y.nii")
    source = listing(tmp_path / "elsewhere", f"label,image\n{tmp_path}/y.nii,{tmp_path}/x.nii\n", files=False)
    (case,) = read_dataset(source).training
    assert (case.id, case.image, case.label) == ("x", tmp_path / "x.nii", tmp_path / "y.nii")


def test_validation_cases_may_be_named(tmp_path: Path) -> None:
    splits = {"a": "", "b": "validation", "c": "train"}
    rows = [f"{name},scans/{name}.nii.gz,scans/{name}-seg.nii.gz,{split},\n" for name, split in splits.items()]
    dataset = read_dataset(listing(tmp_path, HEAD + "".join(rows)))
    assert {case.id for case in dataset.training} == {"a", "b", "c"}
    training, validation = split_training(dataset, fraction=0.9, seed=0)
    assert ([case.id for case in training], [case.id for case in validation]) == (["a", "c"], ["b"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,lable\na,b\n", r"names the columns image, lable; expected image"),
        ("label,split\na,b\n", "names the columns label, split; expected image"),
        ("image,image\na,b\n", "each once"),
        ("", "names the columns none"),
        (HEAD, "lists no training case"),
        (f"{HEAD}a,scans/a.nii.gz,scans/a-seg.nii.gz,trian,\n", "line 2: `split` is 'trian'"),
        (f"{HEAD}a,,scans/a-seg.nii.gz,,\n", "line 2: `image` is empty"),
        (f"{HEAD}a/b,scans/a.nii.gz,scans/a-seg.nii.gz,,\n", r"cases\.csv: a/b can't name a file"),
        (f"{HEAD}a,scans/a.nii.gz,,,\n", "training case a has no `label`"),
        (f"{HEAD}a,scans/a.nii.gz,scans/a-seg.nii.gz,,spleen\n", "line 2: `not_annotated` names spleen"),
        (f"{HEAD}a,scans/a.nii.gz,scans/a-seg.nii.gz,,,,\n", "line 2: more fields than columns"),
        (f"{HEAD}a,scans/a.nii.gz,scans/z.nii.gz,,\n", r"1 listed file\(s\) missing: .*z\.nii\.gz"),
        (f"{HEAD}a,scans/a.nii.gz,scans/a-seg.nii.gz,validation,\n", "every case is for validation or test"),
        (
            f"{HEAD}a,scans/a.nii.gz;scans/b.nii.gz,scans/a-seg.nii.gz,,\nb,scans/b.nii.gz;scans/c.nii.gz;scans/d.nii.gz,"
            "scans/b-seg.nii.gz,,\n",
            "b has 3 images for 2 channels",
        ),
        (f'{HEAD}a,"scans/a.nii.gz\n', "not a CSV file"),
    ],
)
def test_what_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_dataset(listing(tmp_path, text))


def test_repeated_cases_are_refused(tmp_path: Path) -> None:
    row = "a,scans/a.nii.gz,scans/a-seg.nii.gz,,\n"
    with pytest.raises(UserError, match="a listed more than once"):
        read_dataset(listing(tmp_path, HEAD + 2 * row))


def test_classes_without_names(tmp_path: Path) -> None:
    source = listing(tmp_path, f"{HEAD}a,scans/a.nii.gz,scans/a-seg.nii.gz,,\n", names=None)
    with pytest.raises(UserError, match=r"cases\.csv: the classes have no names; .*labels\.json"):
        read_dataset(source)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ([], "expected an object with `labels` and `cases`"),
        ({"labels": LABELS}, "the key `cases` is missing"),
        ({"cases": []}, "the key `labels` is missing"),
        ({"labels": LABELS, "cases": ["a.nii.gz"]}, "`cases` must be a list of objects"),
        ({"labels": LABELS, "cases": [{"image": "a", "seg": "b"}]}, r"cases\[0\]: unknown field seg"),
        ({"labels": LABELS, "cases": [{"image": 3}]}, r"cases\[0\]: `image` must be text or a list of texts"),
        ({"labels": LABELS, "cases": [{"image": "a", "label": 3}]}, r"cases\[0\]: `label` must be text"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, tree: Any, message: str) -> None:
    (tmp_path / "list.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message):
        read_dataset(tmp_path / "list.json")

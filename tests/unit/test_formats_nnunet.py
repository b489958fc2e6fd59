"""nnU-Net's raw folders: cases by the names of their files, and what such folders may hold that is refused."""

from pathlib import Path
from typing import Any

import pytest

from lampseg.data import read_dataset
from lampseg.errors import UserError
from tests.unit.format_folders import LABELS, nnunet_folder, touch


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd"])
def test_reads_a_raw_folder(tmp_path: Path, ending: str) -> None:
    root = nnunet_folder(tmp_path / "Dataset001_Liver", cases=("liver_0", "liver_10"), ending=ending)
    touch(root, *(f"imagesTs/liver_{n}_000{c}{ending}" for n in (7, 8) for c in (0, 1)), f"labelsTs/liver_8{ending}")
    touch(root, f"imagesTr/._liver_0_0000{ending}", "imagesTr/readme.txt", f"labelsTr/other{ending}")
    dataset = read_dataset(root)
    assert (dataset.name, dataset.classes) == ("Dataset001_Liver", ("background", "liver", "cancer"))
    assert dataset.channels == ("T0", "T1")
    first, second = dataset.training
    assert (first.id, second.id) == ("liver_0", "liver_10")
    assert first.images == (root / f"imagesTr/liver_0_0000{ending}", root / f"imagesTr/liver_0_0001{ending}")
    assert first.label == root / f"labelsTr/liver_0{ending}"
    assert [(case.id, case.label) for case in dataset.test] == [
        ("liver_7", None),
        ("liver_8", root / f"labelsTs/liver_8{ending}"),
    ]
    assert dataset == read_dataset(root, format="nnunet")


def test_paths_may_be_listed_instead(tmp_path: Path) -> None:
    listed = {"x": {"images": ["../raw/x-T0.nii.gz", "../raw/x-T1.nii.gz"], "label": "../raw/x-seg.nii.gz"}}
    root = nnunet_folder(tmp_path / "d", cases=(), dataset=listed, numTraining=1)
    touch(tmp_path, "raw/x-T0.nii.gz", "raw/x-T1.nii.gz", "raw/x-seg.nii.gz")
    (case,) = read_dataset(root).training
    assert case.id == "x"
    assert [path.name for path in case.images] == ["x-T0.nii.gz", "x-T1.nii.gz"]
    assert [path.name for path in case.files][2:] == ["x-seg.nii.gz"]


def test_organs_that_were_not_drawn(tmp_path: Path) -> None:
    first, second = read_dataset(nnunet_folder(tmp_path, not_annotated={"b": ["liver"]})).training
    assert (first.annotated, second.annotated) == (None, (2,))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"labels": {**LABELS, "ignore": 3}}, "`ignore` label, which is not supported"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "whole is a region of several values"),
        ({"labels": {"background": 0, "liver": 2}}, "without gaps"),
        ({"file_ending": ".png"}, r"`file_ending` is '\.png'; volumes in \.nii\.gz, \.nii, \.nrrd"),
        ({"file_ending": ".nrrd"}, r"holds no file \*_0000\.nrrd; correct `file_ending`"),
        ({"file_ending": None, "numTraining": 2}, "the key `file_ending` is missing"),
        ({"channel_names": None}, "the key `channel_names` is missing"),
        ({"channel_names": {"0": "CT"}}, r"a has the channels 0000, 0001, but dataset\.json names 1 \(CT\)"),
        ({"channel_names": {"0": "A", "1": "B", "2": "C"}}, "expected 0000 to 0002"),
        ({"numTraining": 3}, "`numTraining` is 3, but there are 2 training cases"),
        ({"not_annotated": {"z": ["liver"]}}, "`not_annotated` must be an object of cases"),
        ({"not_annotated": {"a": ["spleen"]}}, "a: `not_annotated` names spleen"),
        ({"dataset": {"x": {"images": ["x.nii.gz"], "label": "y.nii.gz"}}}, r"dataset\.x: 1 images for the 2 channels"),
        ({"dataset": {"x/y": {"images": ["a", "b"], "label": "c"}}, "numTraining": 1}, "x/y can't name a file"),
        ({"dataset": {"x": {"images": "x.nii.gz"}}}, r"dataset\.x: expected"),
        ({"dataset": []}, "`dataset` must be an object"),
    ],
)
def test_what_is_refused(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_dataset(nnunet_folder(tmp_path, **changed))


def test_missing_parts_are_named(tmp_path: Path) -> None:
    root = nnunet_folder(tmp_path / "label")
    (root / "labelsTr/b.nii.gz").unlink()
    with pytest.raises(UserError, match=r"1 listed file.*labelsTr/b\.nii\.gz"):
        read_dataset(root)
    with pytest.raises(UserError, match="has no folder imagesTr"):
        read_dataset(nnunet_folder(tmp_path / "images", cases=()))
    root = nnunet_folder(tmp_path / "number", channels=1)
    touch(root, "imagesTr/c.nii.gz")
    with pytest.raises(UserError, match=r"c\.nii\.gz: .*with one channel, call the file c_0000\.nii\.gz"):
        read_dataset(root)

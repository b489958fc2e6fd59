"""MSD folders of any task: names of the channels, stray files, and files of an older nnU-Net."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lampseg.data import Case, check_channels, read_dataset, read_truth
from lampseg.errors import UserError
from tests.unit.format_folders import LABELS, describe, touch


def folder(root: Path, **changed: Any) -> Path:
    touch(root, "imagesTr/BRATS_001.nii.gz", "labelsTr/BRATS_001.nii.gz")
    entry = {"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}
    return describe(root, labels=LABELS, training=[entry], **changed)


@pytest.mark.parametrize("key", ["modality", "channel_names"])
def test_channels_are_named_in_the_order_of_their_numbers(tmp_path: Path, key: str) -> None:
    names = {"10": "k", **{str(number): "abcdefghij"[number] for number in range(9, -1, -1)}}
    assert read_dataset(folder(tmp_path, **{key: names})).channels == tuple("abcdefghijk")


def test_one_channel_without_a_name(tmp_path: Path) -> None:
    assert read_dataset(folder(tmp_path)).channels == ("image",)
    assert read_dataset(folder(tmp_path, modality=["CT"])).channels == ("CT",)


@pytest.mark.parametrize("names", [{}, [], "CT", {"1": "T1", "2": "T2"}, {"x": "T1"}, {"0": 3}])
def test_channels_that_are_not_numbered_are_refused(tmp_path: Path, names: Any) -> None:
    with pytest.raises(UserError, match=r"dataset\.json: `modality` (must be|numbers the channels)"):
        read_dataset(folder(tmp_path, modality=names))


def test_stray_files_are_of_no_account(tmp_path: Path) -> None:
    root = folder(tmp_path)
    touch(root, "imagesTr/._BRATS_001.nii.gz", "imagesTr/old.nii.gz", "labelsTr/notes.txt", ".DS_Store", "cases.csv")
    assert [case.id for case in read_dataset(root).training] == ["BRATS_001"]


def test_the_first_nnunet_layout_is_pointed_out(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "imagesTr/BRATS_001.nii.gz").rename(root / "imagesTr/BRATS_001_0000.nii.gz")
    with pytest.raises(UserError, match=r"BRATS_001_0000\.nii\.gz is there: .*add `file_ending`"):
        read_dataset(root)


def test_files_are_held_against_the_named_channels(tmp_path: Path) -> None:
    two, one = tmp_path / "two.nii.gz", tmp_path / "one.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6, 2), np.float32), np.eye(4)), two)
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4)), one)
    check_channels([Case("a", (two,), None, None), Case("b", (one, one), None, None)], channels=("T1", "T2"))
    with pytest.raises(UserError, match=r"one\.nii\.gz: 1 channel\(s\), but the dataset names 2 \(T1, T2\)"):
        check_channels([Case("a", (two,), None, None), Case("b", (one,), None, None)], channels=("T1", "T2"))


def test_labels_may_be_floating_point(tmp_path: Path) -> None:
    root = folder(tmp_path)
    label = np.zeros((4, 5, 6), np.float32)
    label[1, 2, 3] = 2
    nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), root / "labelsTr/BRATS_001.nii.gz")
    (case,) = read_dataset(root).training
    np.testing.assert_array_equal(read_truth(case, classes=3), label)

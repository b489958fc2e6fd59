"""The files of one case -> its arrays in RAS order; and which files belong together, by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from lampseg.data.case_files import read_image, read_truth
from lampseg.data.dataset import Case, Dataset, format_of, read_dataset
from lampseg.data.volume import Volume, file_id, read_volume, spacing_of
from lampseg.errors import UserError


@dataclass(frozen=True)
class CaseFiles:
    """A case to show: files of one grid. Without a truth or a prediction, what is there is shown."""

    name: str
    image: Path
    truth: Path | None = None
    prediction: Path | None = None
    listed: Case | None = None
    """The case of a dataset that `image` belongs to: its truth may be spread over several files."""

    @property
    def has_truth(self) -> bool:
        return self.truth is not None or (self.listed is not None and self.listed.labelled)


@dataclass(frozen=True, eq=False)
class CaseArrays:
    """The voxels of a case, (X, Y, Z) in RAS order: x to the patient's right, y to the front, z up."""

    name: str
    image: NDArray[np.float32]
    truth: NDArray[np.uint8] | None
    prediction: NDArray[np.uint8] | None
    affine: NDArray[np.float64]
    """4x4, from voxel indices to mm."""

    @property
    def spacing(self) -> tuple[float, float, float]:
        """mm per voxel."""
        x, y, z = (float(mm) for mm in spacing_of(self.affine))
        return x, y, z


def read_case(files: CaseFiles) -> CaseArrays:
    """Reads a case of any orientation: axes are permuted and flipped, nothing is resampled.

    Of an image of several channels the first is shown.

    Raises:
        UserError: a file cannot be read, has another shape than the image, or a label map holds no class indices.
    """
    # The one place where the report reads voxels: the last three axes of a volume's array are those of space.
    volume = read_volume(files.image) if files.listed is None else read_image(files.listed.images)
    image, affine = _canonical(volume.array[0], volume.affine)
    truth = None
    if files.truth is not None:
        truth = _labels(files.truth, like=volume, source=files.image)
    elif files.listed is not None and files.listed.labelled:
        truth = _canonical(read_truth(files.listed, classes=256, like=volume), volume.affine)[0]
    prediction = None if files.prediction is None else _labels(files.prediction, like=volume, source=files.image)
    return CaseArrays(files.name, image, truth, prediction, affine)


def _canonical(array: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, affine))
    return np.asarray(turned.dataobj), np.asarray(turned.affine, dtype=np.float64)


def _labels(path: Path, *, like: Volume, source: Path) -> NDArray[np.uint8]:
    volume = read_volume(path)
    array = volume.array[0]
    if array.shape != like.shape:
        raise UserError(f"{path}: shape {array.shape}, but {source} has {like.shape}; give files of one grid")
    values = np.rint(array)
    if (np.abs(array - values) > 1e-3).any() or values.min() < 0 or values.max() > 255:
        raise UserError(f"{path}: holds values that are not classes from 0 to 255; give a label map")
    return _canonical(values.astype(np.uint8), volume.affine)[0]


def find_cases(predictions: Path, labels: Path | None, *, images: Path | None = None) -> tuple[CaseFiles, ...]:
    """The image and the truth of every prediction in a folder, by file name as `lampseg evaluate` pairs them.

    Args:
        predictions: folder of `<image name>.nii.gz`.
        labels: folder of label maps, or a dataset's root; None: without truth.
        images: folder of images; None: those that the dataset.json of `labels` names, else those that
            `predictions/predictions.json`, which `lampseg predict` wrote, names.

    Raises:
        UserError: no predictions, or none whose image is found.
    """
    predicted = _nifti(Path(predictions))
    if not predicted:
        raise UserError(f"{predictions}: no predictions (*.nii.gz) in this folder; run `lampseg predict` first")
    listed, truth_of = _known(Path(labels)) if labels is not None else ({}, {})
    image_of = _recorded(Path(predictions)) if images is None else _nifti(Path(images))
    found = []
    for name, prediction in predicted.items():
        if images is None and name in listed:
            case = listed[name]
            found.append(CaseFiles(name, case.image, truth_of.get(name) or case.label, prediction, case))
            continue
        # nnU-Net's images end in the number of their channel.
        image = image_of.get(name) or image_of.get(f"{name}_0000")
        if image is not None and image.is_file():
            truth = truth_of.get(name) or (listed[name].label if name in listed else None)
            found.append(CaseFiles(name, image, truth, prediction))
    if not found:
        where = images or labels or predictions
        raise UserError(
            f"{where}: no image is named like a prediction in {predictions} (such as {next(iter(predicted))}); "
            "give the folder of the images by --images"
        )
    return tuple(found)


def class_names(labels: Path) -> tuple[str, ...] | None:
    """Names of the classes by the dataset.json in or beside a folder of labels, index 0 = background.

    Raises:
        UserError: it is there and cannot be understood.
    """
    dataset = _dataset(labels)
    return None if dataset is None else dataset.classes


def _dataset(labels: Path) -> Dataset | None:
    """What `labels` is, if it is a dataset in any known layout, or what it lies in."""
    if labels.is_file() or (labels / "dataset.json").is_file() or (labels.is_dir() and format_of(labels) is not None):
        return read_dataset(labels)
    return read_dataset(labels.parent) if (labels.parent / "dataset.json").is_file() else None


def _known(labels: Path) -> tuple[Mapping[str, Case], Mapping[str, Path]]:
    """The cases of the dataset by the names of their image and of their label, and the label maps of the folder."""
    dataset = _dataset(labels)
    listed: dict[str, Case] = {}
    for case in () if dataset is None else (*dataset.training, *dataset.test):
        listed[case.id] = case
        if case.label is not None:
            listed.setdefault(file_id(case.label), case)
    return listed, {} if labels.is_file() else _nifti(labels)


def _recorded(predictions: Path) -> dict[str, Path]:
    try:
        tree = json.loads((predictions / "predictions.json").read_text(encoding="utf-8"))
        return {file_id(Path(item["output"])): Path(item["image"]) for item in tree["predictions"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # the folder may come from elsewhere


def _nifti(folder: Path) -> dict[str, Path]:
    """Hidden files, among them the `._*` that macOS archives leave, are not volumes."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; check the path")
    files = sorted(p for p in folder.iterdir() if p.name.endswith((".nii", ".nii.gz")) and p.name[0] != ".")
    return {file_id(path): path for path in files}

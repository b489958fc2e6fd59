"""The files of one case -> its arrays in RAS order; and which files belong together, by name."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from lampseg.data.dataset import Dataset, read_dataset
from lampseg.data.volume import file_id, read_volume, spacing_of
from lampseg.errors import UserError


@dataclass(frozen=True)
class CaseFiles:
    """A case to show: NIfTI files of one grid. Without a truth or a prediction, what is there is shown."""

    name: str
    image: Path
    truth: Path | None = None
    prediction: Path | None = None


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

    Raises:
        UserError: a file cannot be read, has another shape than the image, or a label map holds no class indices.
    """
    image, affine = _canonical(files.image)
    return CaseArrays(
        files.name,
        image.astype(np.float32),
        None if files.truth is None else _labels(files.truth, like=image, source=files.image),
        None if files.prediction is None else _labels(files.prediction, like=image, source=files.image),
        affine,
    )


def _canonical(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The one place where the report reads voxels: the last three axes of the array are those of space."""
    volume = read_volume(path)
    array = volume.array if volume.array.ndim == 3 else volume.array[0]
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, volume.affine))
    return np.asarray(turned.dataobj), np.asarray(turned.affine, dtype=np.float64)


def _labels(path: Path, *, like: NDArray[Any], source: Path) -> NDArray[np.uint8]:
    array, _ = _canonical(path)
    if array.shape != like.shape:
        raise UserError(f"{path}: shape {array.shape}, but {source} has {like.shape}; give files of one grid")
    values = np.rint(array)
    if (np.abs(array - values) > 1e-3).any() or values.min() < 0 or values.max() > 255:
        raise UserError(f"{path}: holds values that are not classes from 0 to 255; give a label map")
    labels: NDArray[np.uint8] = values.astype(np.uint8)
    return labels


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
    image_of, truth_of = _known(Path(labels)) if labels is not None else ({}, {})
    image_of = {**_recorded(Path(predictions)), **image_of}
    if images is not None:
        image_of = _nifti(Path(images))
    found = []
    for name, prediction in predicted.items():
        # nnU-Net's images end in the number of their channel.
        image = image_of.get(name) or image_of.get(f"{name}_0000")
        if image is not None and image.is_file():
            found.append(CaseFiles(name, image, truth_of.get(name), prediction))
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
    for root in (labels, labels.parent):
        if (root / "dataset.json").is_file():
            return read_dataset(root)
    return None


def _known(labels: Path) -> tuple[Mapping[str, Path], Mapping[str, Path]]:
    """Images and truths by name: those of the dataset, and the files of the folder itself."""
    dataset = _dataset(labels)
    image_of: dict[str, Path] = {}
    truth_of = _nifti(labels)
    for case in () if dataset is None else (*dataset.training, *dataset.test):
        image_of[case.id] = case.image
        if case.label is not None:
            image_of[file_id(case.label)] = case.image
            truth_of[case.id] = truth_of[file_id(case.label)] = case.label
        elif file_id(case.image) in truth_of:
            image_of[file_id(case.image)] = case.image
    return image_of, truth_of


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

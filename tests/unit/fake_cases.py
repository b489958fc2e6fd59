"""A small data set with predictions as folders of NIfTI files, for the tests of the report's pictures and viewer."""

import json
from pathlib import Path

import nibabel
import numpy as np

SHAPE = (40, 36, 32)
NAMES = ("background", "BrainStem", "Chiasm", "Parotid_<L>")
AFFINE = np.diag([-1.0, 1.0, 2.0, 1.0])
"""Stored from right to left, as many scans are."""


def labels_of(case: int) -> np.ndarray:
    """RAS order: class 1 lies on the patient's right, class 2 on the left, class 3 is in the second case only."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[26:36, 12:22, 10:20] = 1
    labels[4:10, 14 + case : 20 + case, 12:18] = 2
    if case == 1:
        labels[18:22, 28:32, 24:28] = 3
    return labels


def predicted(labels: np.ndarray) -> np.ndarray:
    """Class 1 is found two voxels too far to the front, class 2 exactly, class 3 not at all."""
    moved = np.roll(np.where(labels == 1, labels, 0), 2, axis=1)
    return np.where(labels == 2, 2, moved).astype(np.uint8)


def save(path: Path, array: np.ndarray) -> Path:
    """Writes an array in RAS order as a file that is stored from right to left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array[::-1], AFFINE), path)
    return path


def make_cases(
    root: Path, *, names: tuple[str, ...] = ("case_a", "case_b"), classes: tuple[str, ...] = NAMES
) -> tuple[Path, Path]:
    """Writes `data` (the layout of MSD, the cases as its test split) and `predictions`; returns both folders."""
    rng = np.random.default_rng(0)
    data, predictions = root / "data", root / "predictions"
    for number, name in enumerate((*names, "trained")):
        labels = labels_of(min(number, 1))
        image = np.where(labels > 0, 60.0, 40.0) + rng.normal(0, 5, SHAPE)
        split = "Tr" if name == "trained" else "Ts"
        save(data / f"images{split}" / f"{name}.nii.gz", image.astype(np.int16))
        save(data / f"labels{split}" / f"{name}.nii.gz", labels)
        if name != "trained":
            save(predictions / f"{name}.nii.gz", predicted(labels))
    (data / "dataset.json").write_text(
        json.dumps(
            {
                "labels": {str(value): name for value, name in enumerate(classes)},
                "training": [{"image": "imagesTr/trained.nii.gz", "label": "labelsTr/trained.nii.gz"}],
                "test": [{"image": f"imagesTs/{name}.nii.gz", "label": f"labelsTs/{name}.nii.gz"} for name in names],
            }
        )
    )
    return data, predictions

"""Label maps to be scored: read as classes, and checked to lie on one grid."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lampseg.data.volume import Volume, read_volume
from lampseg.errors import UserError
from lampseg.evaluation.tables import few

# Of the spacing: what float32 headers and format conversions may lose. An error of the axes grows with every voxel.
_AXES_TOLERANCE, _ORIGIN_TOLERANCE = 1e-3, 1e-2


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map (X, Y, Z) whose values were found to be classes, and its grid."""

    path: Path
    labels: NDArray[np.uint8]
    affine: NDArray[np.float64]
    spacing: NDArray[np.float64]


def read_label_map(path: Path, *, classes: int | None, source: str = "") -> LabelMap:
    """Reads integers 0 to `classes` - 1 (None: to 255) from a file of one channel; floats that are integers are fine.

    Args:
        source: what says so, for the error: "dataset.json names".

    Raises:
        UserError: as `read_volume`; several channels; values that are no class.
    """
    volume = read_volume(path)
    if len(volume.array) != 1:
        raise UserError(
            f"{path}: {len(volume.array)} channels, but a label map has one number per voxel; combine them into one"
        )
    return LabelMap(path, _classes(path, volume, classes=classes, source=source), volume.affine, volume.spacing)


def check_grid(prediction: LabelMap, truth: LabelMap) -> None:
    """Raises UserError if the two do not lie on one grid: another shape, or affines that differ by more than 1/1000."""
    if prediction.labels.shape != truth.labels.shape:
        raise UserError(
            f"{prediction.path}: shape {prediction.labels.shape}, but its label {truth.path} has "
            f"{truth.labels.shape}; predict on the image that was labelled"
        )
    tolerance = np.append(_AXES_TOLERANCE * truth.spacing, _ORIGIN_TOLERANCE * truth.spacing.max())
    if (np.abs(prediction.affine - truth.affine)[:3] > tolerance).any():
        raise UserError(
            f"{prediction.path}: affine {prediction.affine[:3].round(4).tolist()}, but its label {truth.path} has "
            f"{truth.affine[:3].round(4).tolist()}; predict on the image that was labelled, or correct the header"
        )


def _classes(path: Path, volume: Volume, *, classes: int | None, source: str) -> NDArray[np.uint8]:
    array, top = volume.array[0], (classes or 256) - 1
    labels = np.empty(array.shape, np.uint8)
    wrong, which = 0, set[float]()
    for slab, into in zip(array, labels):  # one at a time: float copies of a whole scan would not fit beside it
        values = np.rint(slab)
        bad = (np.abs(slab - values) > 1e-3) | (values < 0) | (values > top)
        if bad.any():
            wrong += int(np.count_nonzero(bad))
            which |= set(np.unique(slab[bad]).tolist())
        else:
            into[...] = values
    if wrong:
        says = f"{source} the classes 0 to {top}" if classes else "labels are the integers 0 to 255"
        raise UserError(
            f"{path}: {wrong} voxels hold {few([f'{value:g}' for value in sorted(which)])}, but {says}; give label "
            "maps of these classes, and a dataset.json beside the label folder that names all of them"
        )
    return labels

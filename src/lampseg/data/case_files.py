"""The files of one case -> one image of all channels, and one label map: whatever files they are spread over."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lampseg.data.dataset import Case
from lampseg.data.volume import Volume, check_same_grid, read_geometry, read_label, read_volume
from lampseg.errors import UserError


def read_image(images: Sequence[Path]) -> Volume:
    """Reads a scan: one file that holds all channels, or one file for each, all on one grid.

    Raises:
        UserError: as `read_volume`; the files lie on different grids.
    """
    first, *others = (read_volume(path) for path in images)
    for path, volume in zip(images[1:], others):
        check_same_grid(path, volume.shape, volume.affine, first, kind="channel")
    return replace(first, array=np.concatenate([first.array, *(v.array for v in others)])) if others else first


def image_geometry(images: Sequence[Path]) -> tuple[tuple[int, int, int, int], npt.NDArray[np.float64]]:
    """Shape (C, X, Y, Z) and affine of a scan, from the headers alone.

    Raises:
        UserError: as `read_image`, but for faults of the voxels.
    """
    (first, affine), *others = (read_geometry(path) for path in images)
    for path, (shape, _) in zip(images[1:], others):
        if shape[1:] != first[1:]:
            raise UserError(
                f"{path}: shape {list(shape[1:])}, but the first channel {images[0]} has {list(first[1:])}; all "
                "channels of a case must lie on one grid"
            )
    channels = first[0] + sum(shape[0] for shape, _ in others)
    return (channels, *first[1:]), affine


def read_truth(case: Case, *, classes: int, like: Volume | None = None) -> npt.NDArray[np.uint8]:
    """The label map (X, Y, Z) of a labelled case, values 0 to classes - 1.

    Raises:
        UserError: as `read_label`.
    """
    assert case.label is not None
    return read_label(case.label, classes=classes, like=like)

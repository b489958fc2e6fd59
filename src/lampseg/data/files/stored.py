"""What a file holds: voxels, channels first, and an affine; and the checks that every kind of file needs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lampseg.errors import UserError

Array = npt.NDArray[Any]
Affine = npt.NDArray[np.float64]
Shape = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class Stored:
    """Voxels (C, X, Y, Z) of the file's own type, and their affine (voxel index -> mm, RAS+)."""

    array: Array
    affine: Affine | None
    """None where a kind of file says nothing about space."""
    header: Any = None
    """nibabel's header of a NIfTI file."""


def spacing_of(affine: Affine) -> npt.NDArray[np.float64]:
    """Length of the affine's columns: mm per voxel along each array axis."""
    lengths: npt.NDArray[np.float64] = np.linalg.norm(affine[:3, :3], axis=0)
    return lengths


def checked_affine(path: Path, affine: Affine, *, remedy: str) -> Affine:
    """The affine itself.

    Raises:
        UserError: it cannot be inverted.
    """
    if np.isfinite(affine).all():
        spacing = spacing_of(affine)
        # |det| / product of the spacings is the volume of the unit cell's shape: 1 if orthogonal, 0 if flat.
        if spacing.min() > 0 and abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-4:
            return affine
    raise UserError(
        f"{path}: the affine {affine[:3].round(4).tolist()} cannot be inverted, so voxels have no place in space; "
        f"{remedy}"
    )


def check_numbers(path: Path, dtype: np.dtype[Any]) -> None:
    """Raises UserError unless the voxels are plain numbers."""
    if dtype.kind not in "iuf":
        raise UserError(
            f"{path}: voxels are {dtype} (colour or complex), expected plain numbers; convert the file to one grey "
            "value a voxel"
        )


def damaged(path: Path, error: Exception) -> UserError:
    """The refusal of a file that a library fails to read."""
    reason = " ".join(str(error).split())
    return UserError(f"{path}: damaged or cut short ({type(error).__name__}: {reason}); copy or download it again")


def by(shape: tuple[int, ...]) -> str:
    """A shape as text: 9x8x7."""
    return "x".join(str(size) for size in shape)

"""NumPy's .npy files as AnatomyNet's authors publish them: z, y, x, and nothing about space."""

import zipfile
from pathlib import Path

import numpy as np

from lampseg.data.files.stored import Affine, Array, Shape, Stored, by, check_numbers, damaged
from lampseg.errors import UserError

SUFFIXES = (".npy",)
MAGIC = b"\x93NUMPY"

_NOT_READABLE = (OSError, EOFError, ValueError, zipfile.BadZipFile)


def read(path: Path) -> Stored:
    """Reads (Z, Y, X), or (C, Z, Y, X).

    Raises:
        UserError: damaged or cut short, not 3D or 4D, empty, or no plain numbers.
    """
    array = _opened(path)
    _shape(path, array)
    array = array[None] if array.ndim == 3 else array
    return Stored(np.array(array.transpose(0, 3, 2, 1)), None)


def geometry(path: Path) -> Shape:
    """Shape (C, X, Y, Z) without reading the voxels; errors as `read`."""
    return _shape(path, _opened(path))


def affine_for(voxel_size: tuple[float, float, float]) -> Affine:
    """The affine of voxels of this size in mm (x, y, z), counted towards left, posterior and superior.

    ITK, with which AnatomyNet's authors read the scans, hands out arrays in that order for scans that lie straight,
    as those of PDDCA do. The origin is lost: voxel 0 lies at 0.
    """
    x, y, z = voxel_size
    return np.diag([-x, -y, z, 1.0])


def _opened(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except _NOT_READABLE as error:
        raise damaged(path, error) from error
    return array


def _shape(path: Path, array: Array) -> Shape:
    check_numbers(path, np.dtype(np.uint8) if array.dtype.kind == "b" else array.dtype)
    if array.ndim not in (3, 4):
        raise UserError(f"{path}: {array.ndim}D, shape {by(array.shape)}, but a 3D volume (z, y, x) is expected")
    if array.size == 0:
        raise UserError(f"{path}: shape {by(array.shape)} holds no voxels; export the file again or leave it out")
    *channels, z, y, x = array.shape
    return (channels[0] if channels else 1, x, y, z)

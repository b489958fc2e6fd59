"""NRRD files (https://teem.sourceforge.net/nrrd/format.html): read with checks, their space turned to RAS+."""

import re
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from nrrd import NRRDError, read_data, read_header

from lampseg.data.files.stored import Affine, Shape, Stored, by, check_numbers, checked_affine, damaged
from lampseg.errors import UserError

SUFFIXES = (".nrrd", ".nhdr")
MAGIC = b"NRRD"

_NOT_READABLE = (NRRDError, OSError, EOFError, zlib.error, ValueError, KeyError, IndexError, TypeError, StopIteration)
# The signs that turn each space's axes to right, anterior, superior.
_TO_RAS = {
    "right-anterior-superior": (1, 1, 1),
    "ras": (1, 1, 1),
    "left-anterior-superior": (-1, 1, 1),
    "las": (-1, 1, 1),
    "left-posterior-superior": (-1, -1, 1),
    "lps": (-1, -1, 1),
}
_MILLIMETRES = ("mm", "millimeter", "millimeters", "millimetre", "millimetres", "")
_COLOURS = re.compile(r"rgb|rgba|hsv|xyz|complex|quaternion|matrix", re.IGNORECASE)
_REMEDY = "repair `space directions`, e.g. by saving the file again in 3D Slicer"


def read(path: Path) -> Stored:
    """Reads all of a file, attached or detached (.nhdr).

    Raises:
        UserError: damaged or cut short, not 3D or 4D with one axis of channels, empty, no plain numbers, lengths that
            are not in mm, a space whose directions are not known, or an affine that cannot be inverted.
    """
    try:
        with open(path, "rb") as stream:
            header = _header(stream)
            array = read_data(header, stream, str(path), index_order="F")
    except _NOT_READABLE as error:
        raise damaged(path, error) from error
    check_numbers(path, array.dtype)
    (channels, *space), affine, axis = _layout(path, header)
    array = array[None] if axis is None else np.moveaxis(array, axis, 0)
    assert array.shape == (channels, *space)
    return Stored(array, affine)


def geometry(path: Path) -> tuple[Shape, Affine]:
    """Shape (C, X, Y, Z) and affine from the header alone; errors as `read`, but for faults of the voxels."""
    try:
        with open(path, "rb") as stream:
            header = _header(stream)
    except _NOT_READABLE as error:
        raise damaged(path, error) from error
    shape, affine, _ = _layout(path, header)
    return shape, affine


def _header(stream: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a field that is there twice
        try:
            return dict(read_header(stream))
        except Warning as warning:
            raise ValueError(str(warning)) from warning


def _layout(path: Path, header: dict[str, Any]) -> tuple[Shape, Affine, int | None]:
    """Shape (C, X, Y, Z), affine, and the array axis of the channels, None without one."""
    sizes = tuple(int(size) for size in header.get("sizes", ()))
    if len(sizes) not in (3, 4):
        raise UserError(
            f"{path}: {len(sizes)}D, shape {by(sizes)}, but a 3D volume, or a 4D one of several channels, is expected"
        )
    if min(sizes) < 1:
        raise UserError(f"{path}: shape {by(sizes)} holds no voxels; export the file again or leave it out")
    signs = _signs(path, header)
    rows = [_direction(row) for row in _need(path, header, "space directions")]
    flat = [axis for axis, row in enumerate(rows) if row is None]
    if len(rows) != len(sizes) or len(rows) - len(flat) != 3:
        raise UserError(
            f"{path}: `space directions` gives {len(rows) - len(flat)} directions in space for the shape {by(sizes)}; "
            "a volume needs three, and `none` for an axis of channels"
        )
    kinds = [str(kind) for kind in header.get("kinds", ())]
    if flat and len(kinds) == len(sizes) and _COLOURS.search(kinds[flat[0]]):
        raise UserError(f"{path}: voxels are {kinds[flat[0]]} (colour or complex); convert them to one grey value")
    affine = np.eye(4)
    affine[:3, :3] = np.stack([row for row in rows if row is not None], axis=1)
    affine[:3, 3] = _origin(path, header)
    affine[:3] = affine[:3] * np.array(signs, dtype=np.float64)[:, None] + 0.0  # no -0.0
    affine = checked_affine(path, affine, remedy=_REMEDY)
    x, y, z = (size for axis, size in enumerate(sizes) if axis not in flat)
    return (sizes[flat[0]] if flat else 1, x, y, z), affine, flat[0] if flat else None


def _signs(path: Path, header: dict[str, Any]) -> tuple[int, int, int]:
    space = str(header.get("space", "")).strip()
    signs = _TO_RAS.get(space.lower())
    if signs is None:
        raise UserError(
            f"{path}: `space` is {space or 'not given'}, so left and right can't be told; save the file with the "
            f"space left-posterior-superior (LPS), right-anterior-superior (RAS) or left-anterior-superior (LAS)"
        )
    foreign = [unit for unit in header.get("space units", ()) if unit.strip('" ').lower() not in _MILLIMETRES]
    if foreign:
        raise UserError(f"{path}: `space units` is {foreign[0]}, expected mm; save the file in mm")
    return signs


def _need(path: Path, header: dict[str, Any], field: str) -> Any:
    if header.get(field) is None:
        raise UserError(f"{path}: the header has no `{field}`, so voxels have no place in space; {_REMEDY}")
    return header[field]


def _direction(row: Any) -> Affine | None:
    """A row of `space directions`; None for an axis that is none in space."""
    if row is None:
        return None
    vector = np.asarray(row, dtype=np.float64)
    return None if np.isnan(vector).all() else vector


def _origin(path: Path, header: dict[str, Any]) -> Affine:
    origin = np.asarray(_need(path, header, "space origin"), dtype=np.float64)
    if origin.shape != (3,):
        raise UserError(f"{path}: `space origin` is {origin.tolist()}, expected three numbers; {_REMEDY}")
    return origin

"""One file of any kind -> an array and its affine, checked; and label arrays back into NIfTI files, atomically."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lampseg.data.files import nifti, npy, nrrd
from lampseg.data.files.nifti import remove_if_there, save_nifti, write_labels
from lampseg.data.files.stored import Affine, Array, Shape, Stored, by, damaged, spacing_of
from lampseg.errors import UserError

__all__ = [
    "VOXEL_SIZE",
    "Volume",
    "check_same_grid",
    "file_id",
    "read_geometry",
    "read_label",
    "read_mask",
    "read_volume",
    "remove_if_there",
    "save_nifti",
    "spacing_of",
    "suffix_of",
    "write_labels",
]

VOXEL_SIZE = (0.76, 0.76, 1.25)
"""mm (x, y, z) of .npy volumes unless stated: AnatomyNet's come without, and PDDCA's scans are about that fine."""

_SUFFIXES = (*nifti.SUFFIXES, *nrrd.SUFFIXES, *npy.SUFFIXES)
_NAMELESS = ("img", "img_crp_v2")
# Of the spacing: label maps are often written by other software than the scan, which rounds the header's numbers. The
# origin may be off by more than the axes, whose fault grows with every voxel.
_AXES_TOLERANCE = 1e-3
_ORIGIN_TOLERANCE = 1e-2


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan: `array` float32 (C, X, Y, Z), `affine` 4x4 from voxel indices to mm (RAS+), `header` as in the file."""

    array: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    header: Any = None
    """nibabel's header of a NIfTI file, kept so that a prediction states its geometry (qform, sform, units) alike."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis of space."""
        _, x, y, z = self.array.shape
        return (x, y, z)

    @property
    def spacing(self) -> npt.NDArray[np.float64]:
        """Distance between neighbouring voxels along each array axis, in mm."""
        return spacing_of(self.affine)


def file_id(path: Path) -> str:
    """The file's name without `.nii.gz`, `.nii`, `.nrrd` or `.npy`.

    Where every case has a folder of its own and its scan the same name (`img.nrrd`, `img_crp_v2.npy`), that folder's.
    """
    suffix = suffix_of(path)
    name = path.name.removesuffix(suffix)
    if name in _NAMELESS and suffix not in nifti.SUFFIXES:
        return path.absolute().parent.name
    return name


def suffix_of(path: Path) -> str:
    """The ending by which a file's name says that it is a volume: `.nii.gz`, ...; of other files the last suffix."""
    return next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), path.suffix)


def read_volume(path: Path, *, voxel_size: tuple[float, float, float] = VOXEL_SIZE) -> Volume:
    """Reads a scan (NIfTI, NRRD or .npy, told apart by content) of one channel or several.

    Channels are the fourth dimension of a NIfTI file, an axis without direction of an NRRD file, the first of four
    axes of an .npy file.

    Args:
        voxel_size: in mm (x, y, z), of .npy files, which state none.

    Raises:
        UserError: the file is missing, of another kind, damaged or cut short, not 3D or 4D, empty, has an affine that
            cannot be inverted, or holds NaN or infinite voxels.
    """
    path = Path(path)
    stored = _read(path, scaled=True)
    array = np.asarray(stored.array, dtype=np.float32)  # in the order in which it lies: copying takes twice its memory
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise UserError(
            f"{path}: {bad} of {array.size} voxels are NaN or infinite; replace them (for CT by -1000, air) or "
            "leave the case out"
        )
    affine = npy.affine_for(voxel_size) if stored.affine is None else stored.affine
    return Volume(array, affine, stored.header)


def read_geometry(path: Path, *, voxel_size: tuple[float, float, float] = VOXEL_SIZE) -> tuple[Shape, Affine]:
    """Shape (C, X, Y, Z) and affine of a scan from its header alone.

    Raises:
        UserError: as `read_volume`, but for faults of the voxels.
    """
    path = Path(path)
    head = _head(path)
    if head.startswith(nrrd.MAGIC):
        return nrrd.geometry(path)
    if head.startswith(npy.MAGIC):
        return npy.geometry(path), npy.affine_for(voxel_size)
    return nifti.geometry(path)


def read_label(path: Path, *, classes: int, like: Volume | None = None) -> npt.NDArray[np.uint8]:
    """Reads a label map (X, Y, Z) with values 0 to classes - 1; a float file that holds integers is fine.

    With `like`, the map must lie on that scan's grid: same shape, axes equal to 1e-3 of the spacing, origins to 1e-2.

    Raises:
        UserError: as `read_volume`; values that are not integers or not of the classes; another grid than `like`.
    """
    path = Path(path)
    assert 2 <= classes <= 256, "the dataset's reader admits 1 to 255 organs"
    array = _one_channel(path, like, kind="label map")
    whole = np.rint(array) if array.dtype.kind == "f" else array
    # A scaled integer file gives values such as 2.0000002; NaN fails this comparison and is reported, too.
    bad = array[~(np.abs(array - whole) <= 1e-3)] if array.dtype.kind == "f" else array[:0]
    if bad.size:
        raise UserError(
            f"{path}: {bad.size} voxels hold values that are no class indices ({_some(bad)}); labels are the "
            f"integers 0 to {classes - 1}, so resample label maps with nearest-neighbour interpolation"
        )
    outside = whole[(whole < 0) | (whole >= classes)]
    if outside.size:
        raise UserError(
            f"{path}: {outside.size} voxels hold {_some(outside)}, but dataset.json names the classes 0 to "
            f"{classes - 1}; add the missing classes to `labels` or remap the file"
        )
    labels: npt.NDArray[np.uint8] = whole.astype(np.uint8)
    return labels


def read_mask(path: Path, *, like: Volume | None = None) -> npt.NDArray[np.bool_]:
    """Reads the mask (X, Y, Z) of one organ: voxels above 0 belong to it. Errors as `read_label`."""
    path = Path(path)
    array = _one_channel(path, like, kind="mask")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise UserError(f"{path}: the mask holds NaN or infinite voxels; write 0 outside of the organ and 1 inside")
    inside: npt.NDArray[np.bool_] = array > 0
    return inside


def check_same_grid(
    path: Path, shape: tuple[int, ...], affine: npt.NDArray[np.float64], like: Volume, *, kind: str = "label map"
) -> None:
    """Raises UserError unless a file lies on a scan's grid: same shape, axes and origin equal to a tolerance."""
    _check_same_shape(path, shape, like, kind=kind)
    tolerance = np.append(_AXES_TOLERANCE * like.spacing, _ORIGIN_TOLERANCE * like.spacing.max())
    if (np.abs(affine - like.affine)[:3] > tolerance).any():
        raise UserError(
            f"{path}: affine {affine[:3].round(4).tolist()} differs from its image's "
            f"{like.affine[:3].round(4).tolist()}; copy the image's header if the voxels do match, else resample"
        )


def _check_same_shape(path: Path, shape: tuple[int, ...], like: Volume, *, kind: str) -> None:
    if shape != like.shape:
        raise UserError(
            f"{path}: {kind} of shape {by(shape)}, but its image has {by(like.shape)}; resample the "
            f"{kind} onto the image's grid"
        )


def _one_channel(path: Path, like: Volume | None, *, kind: str) -> Array:
    stored = _read(path, scaled=False)
    channels, *space = stored.array.shape
    if channels != 1:
        raise UserError(f"{path}: 4D, shape {by((*space, channels))}, but a 3D {kind} is expected; keep one channel")
    if like is not None and stored.affine is None:
        _check_same_shape(path, tuple(space), like, kind=kind)
    elif like is not None:
        assert stored.affine is not None
        check_same_grid(path, tuple(space), stored.affine, like, kind=kind)
    array: Array = stored.array[0]
    return array


def _read(path: Path, *, scaled: bool) -> Stored:
    head = _head(path)
    if head.startswith(nrrd.MAGIC):
        return nrrd.read(path)
    if head.startswith(npy.MAGIC):
        return npy.read(path)
    return nifti.read(path, scaled=scaled)


def _head(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path or dataset.json")
    try:
        with open(path, "rb") as file:
            return file.read(8)
    except OSError as error:
        raise damaged(path, error) from error


def _some(values: Array) -> str:
    found = np.unique(values)
    return ", ".join(f"{value:g}" for value in found[:5]) + (", ..." if found.size > 5 else "")

"""One NIfTI file -> an array and its affine, checked; and label arrays back into NIfTI files, atomically."""

import contextlib
import gzip
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from lampseg.errors import UserError

_NOT_READABLE = (OSError, EOFError, zlib.error, ValueError, OverflowError, ImageFileError, HeaderDataError)
_SUFFIXES = (".nii.gz", ".nii")
# Of the spacing: label maps are often written by other software than the scan, which rounds the header's numbers. The
# origin may be off by more than the axes, whose fault grows with every voxel.
_AXES_TOLERANCE = 1e-3
_ORIGIN_TOLERANCE = 1e-2

Read = TypeVar("Read")
Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan: `array` float32 (C, X, Y, Z), `affine` 4x4 from voxel indices to mm (RAS+), `header` as in the file."""

    array: npt.NDArray[np.float32]
    affine: npt.NDArray[np.float64]
    header: Any = None
    """nibabel's header, kept so that a prediction states its geometry (qform, sform, units) as the scan does."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along each axis of space."""
        _, x, y, z = self.array.shape
        return (x, y, z)

    @property
    def spacing(self) -> npt.NDArray[np.float64]:
        """Distance between neighbouring voxels along each array axis, in mm."""
        return spacing_of(self.affine)


def spacing_of(affine: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Length of the affine's columns: mm per voxel along each array axis."""
    lengths: npt.NDArray[np.float64] = np.linalg.norm(affine[:3, :3], axis=0)
    return lengths


def file_id(path: Path) -> str:
    """The file's name without `.nii` or `.nii.gz`."""
    for suffix in _SUFFIXES:
        if path.name.endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def read_volume(path: Path) -> Volume:
    """Reads a scan of one channel, or of several along the file's fourth dimension.

    Raises:
        UserError: the file is missing, no NIfTI file, damaged or cut short, not 3D or 4D, empty, has an affine that
            cannot be inverted, or holds NaN or infinite voxels.
    """
    path = Path(path)

    def scaled(image: Any) -> Array:
        return np.asarray(image.get_fdata(dtype=np.float32, caching="unchanged"))

    array, affine, header = _read(path, scaled, _shape_4d)
    array = np.ascontiguousarray(np.moveaxis(array, -1, 0))
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise UserError(
            f"{path}: {bad} of {array.size} voxels are NaN or infinite; replace them (for CT by -1000, air) or "
            "leave the case out"
        )
    return Volume(array, affine, header)


def read_geometry(path: Path) -> tuple[tuple[int, int, int, int], npt.NDArray[np.float64]]:
    """Shape (C, X, Y, Z) and affine of a scan from its header alone.

    Raises:
        UserError: as `read_volume`, but for faults of the voxels.
    """
    path = Path(path)
    with _opened(path) as (image, _):
        x, y, z, channels = _shape_4d(path, image.shape)
        return (channels, x, y, z), _affine_of(path, image)


def read_label(path: Path, *, classes: int, like: Volume | None = None) -> npt.NDArray[np.uint8]:
    """Reads a label map (X, Y, Z) with values 0 to classes - 1; a float file that holds integers is fine.

    With `like`, the map must lie on that scan's grid: same shape, axes equal to 1e-3 of the spacing, origins to 1e-2.

    Raises:
        UserError: as `read_volume`; values that are not integers or not of the classes; another grid than `like`.
    """
    path = Path(path)
    assert 2 <= classes <= 256, "dataset.py admits 1 to 255 organs"
    array, affine, _ = _read(path, lambda image: np.asarray(image.dataobj), _shape_3d)
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
    if like is not None:
        check_same_grid(path, array.shape, affine, like)
    labels: npt.NDArray[np.uint8] = whole.astype(np.uint8)
    return labels


def write_labels(path: Path, labels: Array, affine: npt.NDArray[np.float64], *, header: Any = None) -> None:
    """Writes an integer label map (X, Y, Z) as NIfTI; either the whole file appears under `path`, or none.

    Args:
        header: `Volume.header` of the scan whose grid this is. Its geometry (qform, sform, units, NIfTI version) is
            kept; extensions and free text are not, they may name the patient.

    Raises:
        UserError: the file cannot be written (full disk, read-only or missing folder, no NIfTI name).
    """
    assert labels.ndim == 3
    assert labels.dtype.kind in "iub"
    assert affine.shape == (4, 4)
    dtype = np.uint8 if labels.max(initial=0) < 256 else np.uint16
    version = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = version(labels.astype(dtype), affine, None if header is None else header.copy())
    image.set_data_dtype(dtype)
    image.header.extensions.clear()
    for field in ("descrip", "aux_file", "intent_name", "cal_min", "cal_max"):
        image.header[field] = np.zeros((), image.header[field].dtype)
    if version is nib.Nifti1Image:
        image.header["db_name"] = b""
    if header is None:
        image.header.set_xyzt_units("mm")
    save_nifti(Path(path), image)


def save_nifti(path: Path, image: Any) -> None:
    """Saves nibabel's image under a hidden name beside `path` and renames it when it is complete.

    Raises:
        UserError: the file cannot be written, or `path` does not end in .nii or .nii.gz.
    """
    suffix = next((suffix for suffix in _SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        raise UserError(f"{path}: NIfTI files are named *.nii.gz or *.nii; choose such a name")
    partial = path.with_name(f".{file_id(path)}.{os.getpid()}.partial{suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, partial)
        os.replace(partial, path)
    except OSError as error:
        remove_if_there(partial)
        raise UserError(f"{path}: cannot be written ({error}); free disk space or choose another folder") from error


def remove_if_there(path: Path) -> None:
    """Deletes a half-written file; a folder that cannot be reached holds none."""
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return


def _read(
    path: Path, load: Callable[[Any], Read], shaped: Callable[[Path, tuple[int, ...]], tuple[int, ...]]
) -> tuple[Any, npt.NDArray[np.float64], Any]:
    """Array, affine and header; the gzip stream is read to its end, where its checksum stands."""
    with _opened(path) as (image, stream):
        if image.dataobj.dtype.kind not in "iuf":
            raise UserError(
                f"{path}: voxels are {image.dataobj.dtype} (colour or complex), expected plain numbers; "
                "convert the file to one grey value a voxel"
            )
        shape = shaped(path, image.shape)
        array = np.reshape(load(image), shape)  # type: ignore[call-overload]
        while stream.read(1 << 20):
            pass
        affine = _affine_of(path, image)
    return array, affine, image.header


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, BinaryIO | gzip.GzipFile]]:
    """nibabel's image, whose voxels are not read yet, and the stream; what goes wrong within is the user's to mend."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path or dataset.json")
    try:
        with open(path, "rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"  # by content: `.nii.gz` files that are not compressed exist
        with gzip.open(path, "rb") if packed else open(path, "rb") as stream:
            yield _nifti_class(path, stream).from_stream(stream), stream
    except UserError:
        raise
    except _NOT_READABLE as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{path}: damaged or cut short ({type(error).__name__}: {reason}); copy or download it again"
        ) from error


def _nifti_class(path: Path, stream: BinaryIO | gzip.GzipFile) -> Any:
    head = stream.read(348)
    stream.seek(0)
    if head[344:348] == b"n+1\0":
        return nib.Nifti1Image
    if head[4:8] == b"n+2\0":
        return nib.Nifti2Image
    raise UserError(f"{path}: not a NIfTI file (.nii or .nii.gz); convert it, e.g. with SimpleITK or dcm2niix")


def _shape_3d(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Trailing dimensions of length 1 are dropped."""
    x, y, z, *rest = _with_voxels(path, shape)
    if rest:
        raise UserError(f"{path}: {len(shape)}D, shape {_by(shape)}, but a 3D label map is expected; keep one channel")
    return (x, y, z)


def _shape_4d(path: Path, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """(X, Y, Z, C) of an image; trailing dimensions of length 1 are dropped."""
    x, y, z, *rest = _with_voxels(path, shape)
    if len(rest) > 1:
        raise UserError(
            f"{path}: {len(shape)}D, shape {_by(shape)}, but a 3D volume, or a 4D one of several channels, is "
            "expected; keep one time point"
        )
    return (x, y, z, *rest) if rest else (x, y, z, 1)  # type: ignore[return-value]


def _with_voxels(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    squeezed = shape
    while len(squeezed) > 3 and squeezed[-1] == 1:
        squeezed = squeezed[:-1]
    if len(squeezed) < 3:
        raise UserError(f"{path}: {len(shape)}D, shape {_by(shape)}, but a 3D volume is expected; export it as one")
    if 0 in squeezed:
        raise UserError(f"{path}: shape {_by(shape)} holds no voxels; export the file again or leave it out")
    return squeezed


def _affine_of(path: Path, image: Any) -> npt.NDArray[np.float64]:
    affine = np.asarray(image.affine, dtype=np.float64)
    if np.isfinite(affine).all():
        spacing = spacing_of(affine)
        # |det| / product of the spacings is the volume of the unit cell's shape: 1 if orthogonal, 0 if flat.
        if spacing.min() > 0 and abs(np.linalg.det(affine[:3, :3] / spacing)) > 1e-4:
            return affine
    raise UserError(
        f"{path}: the affine {affine[:3].round(4).tolist()} cannot be inverted, so voxels have no place in space; "
        "repair the header's sform/qform (e.g. with nibabel or SimpleITK)"
    )


def check_same_grid(
    path: Path, shape: tuple[int, ...], affine: npt.NDArray[np.float64], like: Volume, *, kind: str = "label map"
) -> None:
    """Raises UserError unless a file lies on a scan's grid: same shape, axes and origin equal to a tolerance."""
    if shape != like.shape:
        raise UserError(
            f"{path}: {kind} of shape {_by(shape)}, but its image has {_by(like.shape)}; resample the "
            f"{kind} onto the image's grid"
        )
    tolerance = np.append(_AXES_TOLERANCE * like.spacing, _ORIGIN_TOLERANCE * like.spacing.max())
    if (np.abs(affine - like.affine)[:3] > tolerance).any():
        raise UserError(
            f"{path}: affine {affine[:3].round(4).tolist()} differs from its image's "
            f"{like.affine[:3].round(4).tolist()}; copy the image's header if the voxels do match, else resample"
        )


def _some(values: Array) -> str:
    found = np.unique(values)
    return ", ".join(f"{value:g}" for value in found[:5]) + (", ..." if found.size > 5 else "")


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)

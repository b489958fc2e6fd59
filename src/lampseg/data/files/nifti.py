"""NIfTI-1 and NIfTI-2 files, compressed or not: read with checks, and written whole or not at all."""

import contextlib
import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from lampseg.data.files.stored import Affine, Array, Shape, Stored, by, check_numbers, checked_affine, damaged
from lampseg.data.orientation import empty_for_ras
from lampseg.errors import UserError

SUFFIXES = (".nii.gz", ".nii")

_NOT_READABLE = (OSError, EOFError, zlib.error, ValueError, OverflowError, ImageFileError, HeaderDataError)
_REMEDY = "repair the header's sform/qform (e.g. with nibabel or SimpleITK)"


def read(path: Path, *, scaled: bool) -> Stored:
    """Reads all of a file; the gzip stream to its end, where its checksum stands.

    Args:
        scaled: as float32; otherwise in the file's own type, unless the file states a slope.

    Raises:
        UserError: no NIfTI file, damaged or cut short, not 3D or 4D, empty, no plain numbers, or an affine that
            cannot be inverted.
    """
    with _opened(path) as (image, stream):
        check_numbers(path, image.dataobj.dtype)
        shape = _shape(path, image.shape)
        affine = checked_affine(path, np.asarray(image.affine, dtype=np.float64), remedy=_REMEDY)
        if scaled:
            array = _by_plane(image.dataobj, empty_for_ras(shape, affine))
        else:
            array = np.moveaxis(np.asarray(image.dataobj).reshape((*shape[1:], shape[0])), -1, 0)
        while stream.read(1 << 20):
            pass
    return Stored(array, affine, image.header)


def _by_plane(stored: Any, array: Array) -> Array:
    """Fills the array (C, X, Y, Z), read plane by plane: a scan in the file's order beside it would take twice its
    memory.
    """
    rest = (0,) * (len(stored.shape) - 4)
    for channel in range(array.shape[0]):
        for z in range(array.shape[3]):
            place = (slice(None), slice(None), z, channel, *rest)[: len(stored.shape)]
            array[channel, :, :, z] = stored[place]
    return array


def geometry(path: Path) -> tuple[Shape, Affine]:
    """Shape (C, X, Y, Z) and affine from the header alone; errors as `read`, but for faults of the voxels."""
    with _opened(path) as (image, _):
        affine = np.asarray(image.affine, dtype=np.float64)
        return _shape(path, image.shape), checked_affine(path, affine, remedy=_REMEDY)


def write_labels(path: Path, labels: Array, affine: Affine, *, header: Any = None) -> None:
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
    image = version(labels.astype(dtype, copy=False), affine, None if header is None else header.copy())
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
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        raise UserError(f"{path}: NIfTI files are named *.nii.gz or *.nii; choose such a name")
    partial = path.with_name(f".{path.name.removesuffix(suffix)}.{os.getpid()}.partial{suffix}")
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


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, BinaryIO | gzip.GzipFile]]:
    """nibabel's image, whose voxels are not read yet, and the stream; what goes wrong within is the user's to mend."""
    try:
        with open(path, "rb") as plain:
            packed = plain.read(2) == b"\x1f\x8b"  # by content: `.nii.gz` files that are not compressed exist
        with gzip.open(path, "rb") if packed else open(path, "rb") as stream:
            yield _nifti_class(path, stream).from_stream(stream), stream
    except UserError:
        raise
    except _NOT_READABLE as error:
        raise damaged(path, error) from error


def _nifti_class(path: Path, stream: BinaryIO | gzip.GzipFile) -> Any:
    head = stream.read(348)
    stream.seek(0)
    if head[344:348] == b"n+1\0":
        return nib.Nifti1Image
    if head[4:8] == b"n+2\0":
        return nib.Nifti2Image
    raise UserError(
        f"{path}: not a NIfTI file (.nii or .nii.gz), nor NRRD or .npy; convert it, e.g. with SimpleITK or dcm2niix"
    )


def _shape(path: Path, shape: tuple[int, ...]) -> Shape:
    """(C, X, Y, Z) of an image; trailing dimensions of length 1 are dropped."""
    squeezed = shape
    while len(squeezed) > 3 and squeezed[-1] == 1:
        squeezed = squeezed[:-1]
    if len(squeezed) < 3:
        raise UserError(f"{path}: {len(shape)}D, shape {by(shape)}, but a 3D volume is expected; export it as one")
    if 0 in squeezed:
        raise UserError(f"{path}: shape {by(shape)} holds no voxels; export the file again or leave it out")
    x, y, z, *rest = squeezed
    if len(rest) > 1:
        raise UserError(
            f"{path}: {len(shape)}D, shape {by(shape)}, but a 3D volume, or a 4D one of several channels, is "
            "expected; keep one time point"
        )
    return (rest[0] if rest else 1, x, y, z)

"""A DICOM series -> a volume: rescaled voxels on the grid of its slices."""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lampseg.data.dicom.files import NOT_READABLE, DicomSeries, is_dicom, read_dicom_series, series_of
from lampseg.data.dicom.slices import Slice, SliceGrid, grid_of
from lampseg.data.volume import Volume
from lampseg.errors import UserError

__all__ = ["DicomSeries", "dicom_geometry", "is_dicom", "read_dicom", "read_dicom_series"]


def read_dicom(path: Path, *, series: str | None = None) -> Volume:
    """Reads a series: `array` (1, columns, rows, slices) in the units of RescaleSlope and RescaleIntercept.

    Values that scanners write outside the field of view (Pixel Padding Value) are kept.

    Args:
        path: a folder that holds one series, or any file of a series in its folder.
        series: SeriesInstanceUID, where a folder holds several.

    Raises:
        UserError: as `series_of` and `grid_of`; pixels are damaged or compressed in a way that no installed decoder
            reads; values that are not finite. Needs `lampseg[dicom]`.
    """
    grid = grid_of(series_of(path, series=series))
    array = np.empty((1, *grid.shape), np.float32)
    loaded: tuple[Path, npt.NDArray[np.generic]] | None = None
    for index, piece in enumerate(grid.slices):
        if loaded is None or loaded[0] != piece.file:
            loaded = piece.file, _pixels(piece)
        pixels = loaded[1][piece.frame] if loaded[1].ndim == 3 else loaded[1]
        array[0, :, :, index] = (pixels.astype(np.float64) * piece.slope + piece.intercept).T
    bad = int(array.size - np.count_nonzero(np.isfinite(array)))
    if bad:
        raise UserError(f"{path}: {bad} of {array.size} voxels are NaN or infinite; export the series again")
    return Volume(array, grid.affine)


def dicom_geometry(
    path: Path, *, series: str | None = None
) -> tuple[tuple[int, int, int, int], npt.NDArray[np.float64]]:
    """Shape (1, X, Y, Z) and affine of a series, from the headers alone.

    Raises:
        UserError: as `read_dicom`, but for faults of the pixels.
    """
    grid: SliceGrid = grid_of(series_of(path, series=series))
    return (1, *grid.shape), grid.affine


def _pixels(piece: Slice) -> npt.NDArray[np.generic]:
    from pydicom.pixels import pixel_array

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pixels: npt.NDArray[np.generic] = pixel_array(piece.file)
    except NOT_READABLE as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{piece.file}: its pixels can't be read ({type(error).__name__}: {reason}); export the series "
            "uncompressed, or pip install 'lampseg[dicom]' for more decoders"
        ) from error
    columns, rows = piece.shape
    if pixels.shape[-2:] != (rows, columns):
        raise UserError(f"{piece.file}: {pixels.shape} pixels, its header says {rows} rows and {columns} columns")
    return pixels

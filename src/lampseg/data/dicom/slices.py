"""The slices of a DICOM series -> one grid: sorted along their normal, checked for gaps, repeats and other planes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lampseg.data.dicom.files import NOT_READABLE, DicomSeries, header_of, text_of
from lampseg.errors import UserError

EVEN = 0.05
"""Of the distance between slices: so far may each lie from where even distances would put it."""
SAME_PLACE = 0.01
"""mm: slices that are closer than this lie at one position."""
PARALLEL = 1e-3
"""Difference of direction cosines up to which slices are parallel (positions are written with few digits)."""
_TELLING = ("AcquisitionNumber", "TemporalPositionIdentifier", "EchoNumbers", "ImageType")

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Slice:
    """One image of a series: a file of its own, or a frame of a multi-frame file. Coordinates: DICOM's (LPS), mm."""

    file: Path
    frame: int
    uid: str
    position: Vector
    """Centre of the first pixel."""
    right: Vector
    """Direction in which columns follow each other."""
    down: Vector
    """Direction in which rows follow each other."""
    spacing: tuple[float, float]
    """Between columns and between rows."""
    shape: tuple[int, int]
    """Columns and rows."""
    slope: float
    intercept: float
    thickness: float | None
    """Distance to the next slice as the file states it, for a series of a single slice."""

    @property
    def normal(self) -> Vector:
        return np.cross(self.right, self.down)


@dataclass(frozen=True, eq=False)
class SliceGrid:
    """The slices in order, and the affine (voxel index of column, row, slice -> mm, RAS+)."""

    slices: tuple[Slice, ...]
    affine: npt.NDArray[np.float64]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (*self.slices[0].shape, len(self.slices))


def grid_of(series: DicomSeries) -> SliceGrid:
    """The grid of a series, from its headers alone.

    A gantry tilt, by which each slice is shifted within its plane by the same step, makes the affine a sheared one.

    Raises:
        UserError: naming series and file: no position, orientation or spacing; slices of different size, direction or
            spacing; several at one position; some missing, or uneven distances.
    """
    found = [piece for file in series.files for piece in _slices(file)]
    # A file that was copied counts once.
    slices = list({(each.uid, each.frame, *each.position.round(3)): each for each in reversed(found)}.values())[::-1]
    first = slices[0]
    for other in slices[1:]:
        _check_alike(series, first, other)
    slices.sort(key=lambda piece: float(piece.position @ first.normal))
    step = _step(series, slices)
    columns = np.column_stack([first.right * first.spacing[0], first.down * first.spacing[1], step])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, slices[0].position
    return SliceGrid(tuple(slices), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)  # LPS -> RAS


def _slices(file: Path) -> Iterator[Slice]:
    header = header_of(file)
    frames = int(header.get("NumberOfFrames") or 1)
    groups = header.get("PerFrameFunctionalGroupsSequence")
    if frames > 1 and (groups is None or len(groups) != frames):
        raise UserError(
            f"{file}: {frames} frames, but no position for each (not an enhanced CT or MR image); export it as one "
            "file a slice"
        )
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise UserError(f"{file}: colour pixels, but one grey value a pixel is expected; leave the series out")
    if header.get("ModalityLUTSequence"):
        raise UserError(f"{file}: its values go through a lookup table (Modality LUT), which is not supported")
    for frame in range(frames):
        try:
            yield _slice(file, header, frame if groups is not None else None)
        except NOT_READABLE as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{file}: its geometry can't be read ({error}); export it again") from error


def _slice(file: Path, header: Any, frame: int | None) -> Slice:
    def element(name: str, group: str) -> Any:
        """From the frame, else from what the frames share, else from the file."""
        if frame is not None:
            shared = header.get("SharedFunctionalGroupsSequence") or []
            for functional in (header.PerFrameFunctionalGroupsSequence[frame], *shared):
                items = functional.get(group)
                if items and items[0].get(name) is not None:
                    return items[0].get(name)
        return header.get(name)

    def numbers(name: str, group: str, count: int) -> Vector:
        value = element(name, group)
        if value is None or len(value) != count:
            raise UserError(
                f"{file}: {name} is missing, so its pixels have no place in space; leave the series out or export it "
                "again"
            )
        vector = np.asarray([float(number) for number in value])
        if not np.isfinite(vector).all():
            raise UserError(f"{file}: {name} is not finite; export it again")
        return vector

    directions = numbers("ImageOrientationPatient", "PlaneOrientationSequence", 6)
    right, down = directions[:3], directions[3:]
    lengths = np.linalg.norm(right), np.linalg.norm(down)
    if abs(lengths[0] - 1) > 0.01 or abs(lengths[1] - 1) > 0.01 or abs(right @ down) > 0.01:
        raise UserError(f"{file}: ImageOrientationPatient is not two directions at a right angle; export it again")
    rows, columns = numbers("PixelSpacing", "PixelMeasuresSequence", 2)
    if min(rows, columns) <= 0:
        raise UserError(f"{file}: PixelSpacing is not above 0; export it again")
    between = element("SpacingBetweenSlices", "PixelMeasuresSequence")
    thickness = between or element("SliceThickness", "PixelMeasuresSequence")
    slope = element("RescaleSlope", "PixelValueTransformationSequence")
    intercept = element("RescaleIntercept", "PixelValueTransformationSequence")
    return Slice(
        file,
        frame or 0,
        text_of(header, "SOPInstanceUID") or str(file),
        numbers("ImagePositionPatient", "PlanePositionSequence", 3),
        right / lengths[0],
        down / lengths[1],
        (float(columns), float(rows)),
        (int(header.Columns), int(header.Rows)),
        1.0 if slope is None else float(slope),
        0.0 if intercept is None else float(intercept),
        float(thickness) if thickness else None,
    )


def _check_alike(series: DicomSeries, first: Slice, other: Slice) -> None:
    what = None
    if other.shape != first.shape:
        what = f"{other.shape[0]}x{other.shape[1]} pixels, not {first.shape[0]}x{first.shape[1]}"
    elif max(np.abs(other.right - first.right).max(), np.abs(other.down - first.down).max()) > PARALLEL:
        what = "another orientation"
    elif not np.allclose(other.spacing, first.spacing, rtol=1e-3):
        what = f"pixels of {other.spacing} mm, not {first.spacing}"
    if what is not None:
        raise UserError(
            f"{other.file}: has {what}, unlike {first.file} of the same {series}; move images that do not belong to "
            "the volume (localizers, reformats) to another folder"
        )


def _step(series: DicomSeries, slices: Sequence[Slice]) -> Vector:
    """From each slice to the next, in mm."""
    if len(slices) == 1:
        if not slices[0].thickness:
            raise UserError(
                f"{slices[0].file}: the only slice of {series}, and it does not state its thickness; give the whole "
                "series"
            )
        return slices[0].normal * abs(slices[0].thickness)
    positions = np.array([piece.position for piece in slices])
    heights = positions @ slices[0].normal
    distances = np.diff(heights)
    _check_repeats(series, slices, distances)
    usual = float(np.median(distances))
    wide = np.flatnonzero(distances > 1.5 * usual)
    if wide.size:
        at = int(wide[0])
        missing = int(sum(round(distances[i] / usual) - 1 for i in wide))
        raise UserError(
            f"{series}: {missing} slice(s) missing, the first between {slices[at].file} and {slices[at + 1].file}, "
            f"which are {distances[at]:.3g} mm apart (usually {usual:.3g} mm); export the whole series"
        )
    step: Vector = (positions[-1] - positions[0]) / (len(slices) - 1)
    off = np.linalg.norm(positions - positions[0] - np.arange(len(slices))[:, None] * step, axis=1)
    worst = int(off.argmax())
    if off[worst] > EVEN * usual:
        raise UserError(
            f"{series}: {slices[worst].file} lies {off[worst]:.3g} mm from where slices at even distances would be "
            f"(from {distances.min():.3g} to {distances.max():.3g} mm); resample the series to even distances, e.g. "
            "with dcm2niix"
        )
    return step


def _check_repeats(series: DicomSeries, slices: Sequence[Slice], distances: Vector) -> None:
    same = np.flatnonzero(distances < SAME_PLACE)
    if same.size:
        one, two = slices[int(same[0])], slices[int(same[0]) + 1]
        differ = [n for n in _TELLING if header_of(one.file).get(n) != header_of(two.file).get(n)]
        told = f" (they differ in {', '.join(differ)})" if differ else ""
        where = f"{one.file} and {two.file}" if one.file != two.file else f"frames of {one.file}"
        raise UserError(
            f"{series}: {same.size} position(s) more than once, the first in {where}{told}; keep one time point, echo "
            "or reconstruction a folder"
        )

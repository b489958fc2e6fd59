"""DICOM structure sets (RTSTRUCT): the contours of each region of interest -> masks on the grid of their series.

The rules:

- A pixel belongs to a contour if its centre lies inside. Centres on an edge: the first column and row count, the last
  do not, so that neighbours that share an edge never share a pixel.
- Contours of one region in one plane are combined by exclusive or (as CLOSEDPLANAR_XOR demands): one inside another is
  a hole. So is what a keyhole contour encloses, whose bridge is passed twice and thus has no area.
- A plane's pixels go to the slice that is nearest to it; planes that share a slice are united. Slices in between that
  have no contour stay empty: nothing is interpolated, since a region may have a gap.
- Points and open contours have no inside, and are left out.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lampseg.data.dicom.files import NOT_READABLE, read_elements, text_of
from lampseg.errors import UserError

SNAP = 4
"""Decimals of a voxel to which corners are rounded: noise is not to decide on which side of an edge a centre lies."""
SAME_PLANE = 0.05
"""Of the distance between slices: contours that are closer than this lie in one plane."""
FLAT = 0.1
"""Of the distance between slices: a contour that spans more than this does not lie in a slice's plane."""

_TAGS = (
    "Modality",
    "ReferencedFrameOfReferenceSequence",
    "StructureSetROISequence",
    "ROIContourSequence",
    "FrameOfReferenceUID",
)
Grid = tuple[int, int, int]
Affine = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Region:
    """A region of interest as drawn: `contours` are closed polygons, (points, 3) each, in mm (RAS+)."""

    name: str
    contours: tuple[npt.NDArray[np.float64], ...]


@dataclass(frozen=True, eq=False)
class StructureSet:
    """What an RTSTRUCT file holds."""

    file: Path
    series: tuple[str, ...]
    """SeriesInstanceUIDs of the images that it was drawn on."""
    frames_of_reference: tuple[str, ...]
    regions: tuple[Region, ...]


def read_structure_set(file: Path) -> StructureSet:
    """Reads the regions that have closed contours.

    Raises:
        UserError: no RTSTRUCT, or damaged; needs `lampseg[dicom]`.
    """
    header = read_elements(Path(file), _TAGS)
    if text_of(header, "Modality") != "RTSTRUCT":
        raise UserError(f"{file}: DICOM of modality {text_of(header, 'Modality') or 'unknown'}, not RTSTRUCT")
    try:
        names = {int(item.ROINumber): text_of(item, "ROIName") for item in header.get("StructureSetROISequence") or ()}
        regions = []
        for item in header.get("ROIContourSequence") or ():
            contours = tuple(
                np.asarray([float(number) for number in contour.ContourData]).reshape(-1, 3) * (-1, -1, 1)  # LPS -> RAS
                for contour in item.get("ContourSequence") or ()
                if text_of(contour, "ContourGeometricType").upper().startswith("CLOSED")
            )
            if contours:
                regions.append(Region(names[int(item.ReferencedROINumber)], contours))
        series, frames = [], []
        for frame in header.get("ReferencedFrameOfReferenceSequence") or ():
            frames.append(text_of(frame, "FrameOfReferenceUID"))
            for study in frame.get("RTReferencedStudySequence") or ():
                series += [text_of(s, "SeriesInstanceUID") for s in study.get("RTReferencedSeriesSequence") or ()]
    except NOT_READABLE as error:
        raise UserError(f"{file}: its contours can't be read ({type(error).__name__}); export it again") from error
    return StructureSet(Path(file), tuple(series), tuple(frames), tuple(regions))


def region_mask(region: Region, *, shape: Grid, affine: Affine, source: Path) -> npt.NDArray[np.bool_]:
    """The voxels (X, Y, Z) of a region, X and Y in the plane of the slices, by the rules above.

    Contours outside the grid add nothing.

    Args:
        affine: of the series' grid, voxel index -> mm (RAS+).
        source: the file, for messages.

    Raises:
        UserError: a contour does not lie in the plane of a slice.
    """
    mask = np.zeros(shape, np.bool_)
    for height, polygons in _planes(region, affine=affine, source=source):
        index = int(np.floor(height + 0.5))
        if 0 <= index < shape[2]:
            mask[:, :, index] |= inside(polygons, shape=shape[:2])
    return mask


def empty_slices_between(region: Region, *, affine: Affine, source: Path) -> int:
    """How many slices without a contour lie between the region's first and last one."""
    heights = {int(np.floor(height + 0.5)) for height, _ in _planes(region, affine=affine, source=source)}
    return max(heights) - min(heights) + 1 - len(heights)


def _planes(region: Region, *, affine: Affine, source: Path) -> Iterator[tuple[float, list[npt.NDArray[np.float64]]]]:
    """Contours in voxel coordinates of the plane, by the plane's height in slices."""
    inverse = np.linalg.inv(affine)
    flat = []
    for contour in region.contours:
        points = contour @ inverse[:3, :3].T + inverse[:3, 3]
        if np.ptp(points[:, 2]) > FLAT:
            raise UserError(
                f"{source}: a contour of {region.name!r} crosses slices of the series (it spans "
                f"{np.ptp(points[:, 2]):.3g} of them), so it was drawn in another plane; export the structures for "
                "this series"
            )
        flat.append((float(points[:, 2].mean()), points[:, :2].round(SNAP)))
    flat.sort(key=lambda each: each[0])
    start = 0
    for end in range(1, len(flat) + 1):
        if end == len(flat) or flat[end][0] - flat[start][0] > SAME_PLANE:
            yield flat[start][0], [points for _, points in flat[start:end]]
            start = end


def inside(polygons: Sequence[npt.NDArray[np.float64]], *, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Which pixel centres (integer coordinates) an odd number of the closed polygons (points, 2) enclose; (X, Y).

    Scan lines: each edge that crosses a row changes, from its crossing on, inside to outside and back.
    """
    columns, rows = shape
    changes = np.zeros((columns + 1, rows), np.int32)
    for polygon in polygons:
        ax, ay = polygon.T
        bx, by = np.roll(polygon, -1, axis=0).T
        low = np.maximum(np.ceil(np.minimum(ay, by)), 0).astype(np.int64)
        high = np.minimum(np.ceil(np.maximum(ay, by)), rows).astype(np.int64)
        count = np.maximum(high - low, 0)  # rows that an edge crosses: low <= row < high
        edge = np.repeat(np.arange(len(polygon)), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + low[edge]
        cross = ax[edge] + (row - ay[edge]) * (bx[edge] - ax[edge]) / (by[edge] - ay[edge])
        first = np.clip(np.ceil(cross.round(SNAP + 2)), 0, columns).astype(np.int64)
        np.add.at(changes, (first, row), 1)
    odd: npt.NDArray[np.bool_] = np.cumsum(changes, axis=0)[:columns] % 2 == 1
    return odd


def read_structures(
    file: Path, *, classes: Sequence[str], shape: Grid, affine: Affine
) -> tuple[npt.NDArray[np.uint8], tuple[int, ...]]:
    """A label map (X, Y, Z) of a structure set, and the classes that were drawn in it.

    Regions are matched to classes by name; case, blanks, dashes, dots and underscores do not count unless two regions
    would then be one. Regions of other names are left out. Where regions overlap, the later class wins.

    Args:
        classes: names by label value, background first.

    Raises:
        UserError: as `read_structure_set` and `region_mask`; no region has a class's name, or none lies on the grid.
    """
    assert 2 <= len(classes) <= 256
    found = read_structure_set(file)
    chosen = match_regions(found, classes)
    if not chosen:
        names = ", ".join(repr(region.name) for region in found.regions) or "none with closed contours"
        raise UserError(
            f"{file}: no region is called as one of the classes ({', '.join(classes[1:])}); its regions are: {names}"
        )
    labels = np.zeros(shape, np.uint8)
    for index, region in sorted(chosen.items()):
        labels[region_mask(region, shape=shape, affine=affine, source=Path(file))] = index
    if not labels.any():
        raise UserError(f"{file}: none of its regions lies on the grid of the series; was it drawn on another scan?")
    return labels, tuple(sorted(chosen))


def match_regions(found: StructureSet, classes: Sequence[str]) -> dict[int, Region]:
    """Class index -> its region: the one of exactly its name, else the only one whose name says the same.

    Raises:
        UserError: several regions say the same name, none of them exactly.
    """
    chosen = {}
    for index, name in enumerate(classes[1:], start=1):
        same = [region for region in found.regions if plain_name(region.name) == plain_name(name)]
        exact = [region for region in same if region.name == name]
        if len(exact or same) > 1:
            raise UserError(
                f"{found.file}: {len(exact or same)} regions are called like {name!r} "
                f"({', '.join(repr(region.name) for region in exact or same)}); rename or remove all but one"
            )
        if same:
            chosen[index] = (exact or same)[0]
    return chosen


def plain_name(name: str) -> str:
    """A name without case, blanks, dashes, dots and underscores."""
    return "".join(letter for letter in name.casefold() if letter not in " -._")

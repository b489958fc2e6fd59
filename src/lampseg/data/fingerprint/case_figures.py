"""One case measured: its grid from the headers; then intensities, voxels and bounding boxes of each class."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lampseg.data.case_files import image_geometry, read_image, read_truth
from lampseg.data.cases import Case
from lampseg.data.dicom.series import is_dicom
from lampseg.data.dicom.structures import empty_slices_between, match_regions, read_structure_set, region_mask
from lampseg.data.grid import triple
from lampseg.data.volume import Volume, spacing_of
from lampseg.errors import UserError

IMAGE, FOREGROUND = -2, -1
"""Keys of samples that are of no single class: from all voxels, and from those of any class but the background."""

Triple = tuple[int, int, int]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[np.float32]
Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class CaseHeader:
    """What the headers tell."""

    shape: Triple
    """Voxels along x, y and z in RAS order, as `data.spacing` counts them."""
    spacing: tuple[float, float, float]
    """mm, in RAS order."""
    orientation: str
    """Where the file's array axes point to, such as LPS."""
    oblique: float
    """Largest angle between an array axis and the body's axis nearest to it, in degrees."""
    channels: int


@dataclass(frozen=True)
class ClassFigures:
    """A class in one case where it is present; sizes in RAS order."""

    voxels: int
    ml: float
    box_voxels: Triple
    box_mm: tuple[float, float, float]
    touches_border: bool


@dataclass(frozen=True, eq=False)
class CaseFigures:
    """What the voxels tell."""

    intensity: tuple[tuple[float, float, float], ...]
    """Lowest, mean and highest value of each channel."""
    classes: Mapping[int, ClassFigures]
    """The organs that are present, by index."""
    background: int | None
    """Voxels of no organ; None without a label map, or if not all classes are annotated."""
    samples: Mapping[int, Array]
    """(C, n) values at random voxels: by class index, 0 being the background, and IMAGE and FOREGROUND."""
    at_minimum: Mapping[int, float]
    """Share of each organ's voxels that hold the first channel's lowest value, where that marks padding."""
    digest: str
    """Of shape and values: equal for scans that are copies of each other."""
    gaps: Mapping[int, int]
    """Organs drawn as contours: slices without one between the first and the last, where there are any."""


def read_header(case: Case) -> CaseHeader:
    """Reads the headers of a case's images.

    Raises:
        UserError: as `image_geometry`.
    """
    shape, affine = image_geometry(case.images)
    order = _ras_order(affine)
    directions = affine[:3, :3] / spacing_of(affine)
    cosines = np.abs(directions).max(axis=0).clip(0, 1)
    x, y, z = (float(spacing_of(affine)[axis]) for axis in order)
    return CaseHeader(
        triple([shape[1 + axis] for axis in order]),
        (x, y, z),
        "".join(nib.aff2axcodes(affine)),
        float(np.degrees(np.arccos(cosines)).max()),
        shape[0],
    )


def measure_case(case: Case, *, classes: tuple[str, ...], sample: int, seed: int = 0) -> CaseFigures:
    """Reads a case's voxels and measures them; one volume is held in memory, with its label map.

    Args:
        classes: names by label value, background first.
        sample: voxels drawn of each class, of the foreground and of the image (all of them, where there are fewer).

    Raises:
        UserError: as `read_image`, `read_truth` and `region_mask`; voxels of a class that is listed as not annotated.
    """
    volume = read_image(case.images)
    rng = np.random.default_rng([seed, *hashlib.sha256(case.id.encode()).digest()[:8]])
    order = _ras_order(volume.affine)
    everything = int(np.prod(volume.shape))
    chosen = rng.choice(everything, min(sample, everything), replace=False)
    samples = {IMAGE: volume.array.reshape(len(volume.array), -1)[:, chosen]}
    found: dict[int, ClassFigures] = {}
    low: dict[int, float] = {}
    gaps: dict[int, int] = {}
    background = None
    padding = _padding(volume.array[0])
    if case.labelled:
        covered = np.zeros(volume.shape, np.bool_)
        for index, box, mask in _class_masks(case, volume, classes, gaps):
            covered[box] |= mask
            found[index] = _class_figures(box, mask, volume, order)
            values = _drawn(volume.array, box, mask, sample, rng)
            samples[index] = values
            if padding is not None:
                low[index] = float(np.mean(volume.array[0][box][mask] == padding))
        full = (slice(None), slice(None), slice(None))
        samples[FOREGROUND] = _drawn(volume.array, full, covered, sample, rng)
        if case.annotated is None or len(case.annotated) == len(classes) - 1:
            background = everything - int(np.count_nonzero(covered))
            samples[0] = _drawn(volume.array, full, ~covered, sample, rng)
    intensity = tuple((float(c.min()), float(c.mean(dtype=np.float64)), float(c.max())) for c in volume.array)
    return CaseFigures(intensity, found, background, samples, low, _digest(volume.array), gaps)


def _ras_order(affine: npt.NDArray[np.float64]) -> list[int]:
    """For x, y and z the array axis that runs along it."""
    along = nib.io_orientation(affine)[:, 0].astype(int).tolist()
    return [along.index(axis) for axis in range(3)]


def _class_masks(
    case: Case, volume: Volume, classes: tuple[str, ...], gaps: dict[int, int]
) -> Iterator[tuple[int, Box, Mask]]:
    """Index, bounding box and voxels within it of each organ that is present."""
    if case.label is not None and is_dicom(case.label):
        yield from _contoured_masks(case.label, volume, classes, gaps)
        return
    label = read_truth(case, classes=len(classes), like=volume)
    for index, box in enumerate(ndimage.find_objects(label, max_label=len(classes) - 1), start=1):
        if box is None:
            continue
        if case.annotated is not None and index not in case.annotated:
            raise UserError(
                f"{case.label or case.id}: holds voxels of {classes[index]}, which is listed as not annotated for "
                f"{case.id}; remove the entry or the voxels"
            )
        yield index, box, label[box] == index


def _contoured_masks(
    file: Path, volume: Volume, classes: tuple[str, ...], gaps: dict[int, int]
) -> Iterator[tuple[int, Box, Mask]]:
    """Each region by itself: they may overlap."""
    for index, region in sorted(match_regions(read_structure_set(file), classes).items()):
        mask = region_mask(region, shape=volume.shape, affine=volume.affine, source=file)
        missing = empty_slices_between(region, affine=volume.affine, source=file)
        if missing:
            gaps[index] = missing
        (box,) = ndimage.find_objects(mask.view(np.uint8), max_label=1)
        if box is not None:
            yield index, box, mask[box]


def _class_figures(box: Box, mask: Mask, volume: Volume, order: list[int]) -> ClassFigures:
    voxels = int(np.count_nonzero(mask))
    sizes = [side.stop - side.start for side in box]
    x, y, z = (float(sizes[axis] * volume.spacing[axis]) for axis in order)
    return ClassFigures(
        voxels,
        voxels * float(abs(np.linalg.det(volume.affine[:3, :3]))) / 1000,
        triple([sizes[axis] for axis in order]),
        (x, y, z),
        any(side.start == 0 or side.stop == size for side, size in zip(box, volume.shape)),
    )


def _drawn(array: Array, box: Box, mask: Mask, sample: int, rng: np.random.Generator) -> Array:
    """Values (C, n) at `sample` random voxels of the mask, or at all of them if there are fewer.

    They are chosen by their rank, slab by slab, so that no list of all voxels is made.
    """
    counts = np.count_nonzero(mask, axis=(1, 2))
    total = int(counts.sum())
    ranks = np.sort(rng.choice(total, min(sample, total), replace=False)) if total else np.zeros(0, np.int64)
    ends = np.cumsum(counts)
    inner = array[(slice(None), *box)]
    parts = []
    for slab in np.unique(np.searchsorted(ends, ranks, side="right")):
        first = ends[slab] - counts[slab]
        here = ranks[(ranks >= first) & (ranks < ends[slab])] - first
        rows, columns = (axis[here] for axis in np.nonzero(mask[slab]))
        parts.append(inner[:, slab, rows, columns])
    return np.concatenate(parts, axis=1) if parts else np.zeros((len(array), 0), np.float32)


def _padding(channel: Array) -> float | None:
    """The lowest value, if more than a hundredth of the voxels hold it, as those outside the field of view do."""
    lowest = channel.min()
    return float(lowest) if np.count_nonzero(channel == lowest) > 0.01 * channel.size else None


def _digest(array: Array) -> str:
    """Of the shape and of a million values, evenly spread."""
    flat = array.reshape(-1)
    step = max(1, flat.size // 1_000_000)
    return hashlib.sha256(str(array.shape).encode() + np.ascontiguousarray(flat[::step]).tobytes()).hexdigest()

"""Writes a phantom dataset: head-and-neck-like CT scans with nine labelled organs, in the MSD layout."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

from lampseg.data.dataset import Dataset, read_dataset
from lampseg.data.formats.organs import ORGANS
from lampseg.data.phantom.anatomy import AIR, head
from lampseg.data.phantom.shapes import Points
from lampseg.data.volume import remove_if_there, save_nifti
from lampseg.errors import UserError

FIELD_OF_VIEW = (224.0, 288.0)
"""Shortest and longest side of a scan in mm."""
TILT = 15.0
"""Largest rotation of the head about each axis, in degrees."""
INCOMPLETE = 0.25
"""Fraction of the training cases that lack one or two annotations."""

_AXIS_ORDERS = ("RAS", "LPS", "LAS", "RSA")  # left-handed and permuted files among them
_ORGAN_BOX = np.array([(-74.0, 74.0), (-44.0, 90.0), (-104.0, 26.0)])  # head coordinates in mm, poses included
_SLAB = 6  # slices painted at a time: they fit in the processor's cache, and fine spacings in memory
_TRAINING, _TEST, _ABSENT = 0, 1, 2  # separate random streams


@dataclass(frozen=True, eq=False)
class PhantomScan:
    """One head, axes in RAS order: `image` int16 Hounsfield units and `label` uint8, both (X, Y, Z)."""

    image: npt.NDArray[np.int16]
    label: npt.NDArray[np.uint8]
    affine: npt.NDArray[np.float64]


def write_phantom(out: Path, *, cases: int, seed: int, test: int = 0, spacing: float = 4.0) -> Dataset:
    """Writes `cases` training and `test` test cases under `out` and reads them back as a dataset.

    A case depends on `seed` and its own number only. `dataset.json` is written last.

    Args:
        spacing: edge of a voxel in mm; the heads keep their size. 4 mm gives 56 to 72 voxels a side.

    Raises:
        UserError: `out` is not an empty or new folder or cannot be written; a number is out of range.
    """
    out = Path(out)
    if cases < 1 or test < 0 or seed < 0:
        raise UserError(f"phantom: {cases} cases, {test} test cases, seed {seed}; at least 1, 0 and 0 are needed")
    if not 1 <= spacing <= 5:
        raise UserError(f"phantom: spacing {spacing} mm; choose 1 to 5 (beyond, the optic nerves vanish)")
    _make_folders(out)
    absent = _not_annotated(cases, seed)
    training = [_write_case(out, "Tr", f"head_{i:03d}", [seed, _TRAINING, i], spacing, absent[i]) for i in range(cases)]
    held_out = [_write_case(out, "Ts", f"test_{i:03d}", [seed, _TEST, i], spacing, ()) for i in range(test)]
    tree = {
        "name": "Phantom",
        "description": "Synthetic head-and-neck CT; made by lampseg, no patient's data",
        "modality": {"0": "CT"},
        "labels": {str(i): name for i, name in enumerate(("background", *ORGANS))},
        "numTraining": cases,
        "numTest": test,
        "training": training,
        "test": held_out,
    }
    partial = out / f".dataset.{os.getpid()}.partial"
    try:
        partial.write_text(json.dumps(tree, indent=2) + "\n", encoding="utf-8")
        os.replace(partial, out / "dataset.json")
    except OSError as error:
        remove_if_there(partial)
        raise UserError(f"{out}: cannot be written ({error}); free disk space or choose another folder") from error
    return read_dataset(out)


def phantom_scan(rng: np.random.Generator, *, spacing: float = 4.0) -> PhantomScan:
    """One random head: shifted, turned, scaled and cropped, blurred by half a voxel, noise of 20 to 30 HU."""
    from scipy import ndimage  # here, as below: SciPy takes a third of a second, and most of lampseg does without
    from scipy.spatial.transform import Rotation

    turn = Rotation.from_euler("xyz", rng.uniform(-TILT, TILT, 3), degrees=True).as_matrix()
    scale = rng.uniform(0.92, 1.08)
    shape, origin = _field_of_view(rng, turn * scale, spacing)
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = origin

    intensity = np.full(shape, AIR, np.float32)
    label = np.zeros(shape, np.uint8)
    tissues = head(rng)
    for start in range(0, shape[0], _SLAB):
        slab = slice(start, start + _SLAB)
        points = _head_coordinates(intensity[slab].shape, start, affine, turn * scale)
        for tissue in tissues:
            depth = -tissue.shape.distance(points) * np.float32(scale / spacing)  # in voxels
            share = np.clip(depth + np.float32(0.5), 0, 1)  # of the voxel that the solid fills
            intensity[slab] += share * (np.float32(tissue.hounsfield) - intensity[slab])
            label[slab][depth > 0] = tissue.organ
    intensity = ndimage.gaussian_filter(intensity, 0.5)
    intensity += rng.uniform(20, 30) * rng.standard_normal(shape, np.float32)
    affine[:3, 3] += rng.uniform(-100, 100, 3)  # where the scanner's zero lies says nothing about the head
    return PhantomScan(np.rint(intensity).clip(-1024, 3071).astype(np.int16), label, affine)


def _field_of_view(
    rng: np.random.Generator, pose: npt.NDArray[np.float64], spacing: float
) -> tuple[tuple[int, int, int], npt.NDArray[np.float64]]:
    """Shape in voxels and position in mm of a random box around the organs; skull, neck or nose may be cut off."""
    corners = pose @ np.stack(np.meshgrid(*_ORGAN_BOX, indexing="ij")).reshape(3, -1)
    low, high = corners.min(1), corners.max(1)
    sides = np.maximum(rng.uniform(*FIELD_OF_VIEW, 3), high - low + 2 * spacing)
    count = np.ceil(sides / spacing).astype(int)
    origin = rng.uniform(high + spacing - count * spacing, low - spacing)
    return (int(count[0]), int(count[1]), int(count[2])), origin


def _head_coordinates(
    shape: tuple[int, ...], start: int, affine: npt.NDArray[np.float64], pose: npt.NDArray[np.float64]
) -> Points:
    """Of a slab that begins at index `start` of the first axis: (3, *shape)."""
    to_head = np.linalg.inv(pose) @ affine[:3]
    corner = to_head @ [start, 0, 0, 1]
    voxels = np.indices(shape, dtype=np.float32)
    points: Points = np.tensordot(to_head[:, :3].astype(np.float32), voxels, 1)
    points += corner.astype(np.float32)[:, None, None, None]
    return points


def _not_annotated(cases: int, seed: int) -> list[tuple[int, ...]]:
    """For every training case the label values that are not drawn."""
    rng = np.random.default_rng([seed, _ABSENT])
    chosen = set(rng.permutation(cases)[: round(INCOMPLETE * cases)].tolist())
    organs = [rng.permutation(len(ORGANS))[: rng.integers(1, 3)] + 1 for _ in range(cases)]
    return [tuple(sorted(organs[i].tolist())) if i in chosen else () for i in range(cases)]


def _write_case(
    out: Path, part: str, name: str, seeds: list[int], spacing: float, absent: tuple[int, ...]
) -> dict[str, Any]:
    rng = np.random.default_rng(seeds)
    scan = phantom_scan(rng, spacing=spacing)
    order = nib.orientations.axcodes2ornt(_AXIS_ORDERS[rng.integers(len(_AXIS_ORDERS))])
    label = np.where(np.isin(scan.label, absent), 0, scan.label).astype(np.uint8)
    entry: dict[str, Any] = {}
    for key, folder, array in (("image", f"images{part}", scan.image), ("label", f"labels{part}", label)):
        image = nib.Nifti1Image(array, scan.affine).as_reoriented(order)
        image.header.set_xyzt_units("mm")
        save_nifti(out / folder / f"{name}.nii.gz", image)
        entry[key] = f"./{folder}/{name}.nii.gz"
    if absent:
        entry["not_annotated"] = [ORGANS[value - 1] for value in absent]
    return entry


def _make_folders(out: Path) -> None:
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: is not an empty folder; choose a new one, nothing is overwritten")
        for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (out / name).mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error}); choose another folder") from error

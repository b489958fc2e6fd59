"""The files of one case -> one image of all channels, and one label map: whatever files they are spread over."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from lampseg.data.cases import Case, Dataset
from lampseg.data.dicom.series import dicom_geometry, is_dicom, read_dicom
from lampseg.data.volume import (
    VOXEL_SIZE,
    Volume,
    check_same_grid,
    file_id,
    read_geometry,
    read_label,
    read_mask,
    read_volume,
)
from lampseg.errors import UserError

VoxelSize = tuple[float, float, float]


def read_image(images: Sequence[Path], *, voxel_size: VoxelSize = VOXEL_SIZE) -> Volume:
    """Reads a scan: one file that holds all channels, or one file for each, all on one grid.

    A DICOM series is named by its folder or by any of its files.

    Args:
        voxel_size: in mm (x, y, z), of .npy files, which state none.

    Raises:
        UserError: as `read_volume` and `read_dicom`; the files lie on different grids.
    """
    first, *others = (
        read_dicom(path) if is_dicom(path) else read_volume(path, voxel_size=voxel_size) for path in images
    )
    for path, volume in zip(images[1:], others):
        check_same_grid(path, volume.shape, volume.affine, first, kind="channel")
    return replace(first, array=np.concatenate([first.array, *(v.array for v in others)])) if others else first


def image_geometry(
    images: Sequence[Path], *, voxel_size: VoxelSize = VOXEL_SIZE
) -> tuple[tuple[int, int, int, int], npt.NDArray[np.float64]]:
    """Shape (C, X, Y, Z) and affine of a scan, from the headers alone.

    Raises:
        UserError: as `read_image`, but for faults of the voxels.
    """
    (first, affine), *others = (
        dicom_geometry(path) if is_dicom(path) else read_geometry(path, voxel_size=voxel_size) for path in images
    )
    for path, (shape, _) in zip(images[1:], others):
        if shape[1:] != first[1:]:
            raise UserError(
                f"{path}: shape {list(shape[1:])}, but the first channel {images[0]} has {list(first[1:])}; all "
                "channels of a case must lie on one grid"
            )
    channels = first[0] + sum(shape[0] for shape, _ in others)
    return (channels, *first[1:]), affine


def check_channels(cases: Iterable[Case], *, channels: tuple[str, ...]) -> None:
    """Raises UserError unless every case's files hold as many channels as the dataset names; reads headers only."""
    for case in cases:
        (found, *_), _ = image_geometry(case.images)
        if found != len(channels):
            raise UserError(
                f"{case.image}: {found} channel(s), but the dataset names {len(channels)} ({', '.join(channels)}); "
                "correct `modality` or `channel_names` there, or keep so many channels in the file"
            )


def read_truth(case: Case, *, classes: int, like: Volume | None = None) -> npt.NDArray[np.uint8]:
    """The label map (X, Y, Z) of a labelled case, values 0 to classes - 1.

    Masks of single organs are merged. Where several hold a voxel, it goes to the organ with the fewest voxels in this
    case: a thin organ is not to vanish under a large one (equally large ones: to the later class).

    Raises:
        UserError: as `read_label`; masks on different grids.
    """
    assert case.labelled
    if case.label is not None:
        return read_label(case.label, classes=classes, like=like)
    masks = [(index, path, read_mask(path, like=like)) for index, path in case.masks]
    _, first_path, first = masks[0]
    for _, path, mask in masks[1:]:
        if mask.shape != first.shape:
            raise UserError(f"{path}: shape {list(mask.shape)}, but {first_path} has {list(first.shape)}")
    labels = np.zeros(first.shape, np.uint8)
    for index, _, mask in sorted(masks, key=lambda item: (-np.count_nonzero(item[2]), item[0])):
        labels[mask] = index
    return labels


def truth_affine(case: Case, *, voxel_size: VoxelSize = VOXEL_SIZE) -> npt.NDArray[np.float64]:
    """The affine (4x4, voxel index -> mm, RAS+) of what `read_truth` gives, from a header alone; errors as there."""
    assert case.labelled
    _, affine = read_geometry(case.masks[0][1] if case.label is None else case.label, voxel_size=voxel_size)
    return affine


def truths_of(dataset: Dataset) -> dict[str, Case]:
    """Every labelled case under its id, and under its label map's name (they differ where names say so)."""
    truths: dict[str, Case] = {}
    for case in (*dataset.training, *dataset.test):
        if case.label is not None:
            truths[file_id(case.label)] = case
    for case in (*dataset.training, *dataset.test):
        if case.labelled:
            truths[case.id] = case
    return truths

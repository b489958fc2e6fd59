"""Shapes on the network's grid from the headers alone: what a plan needs to know of a dataset."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lampseg.config import DataConfig
from lampseg.data.case_files import image_geometry
from lampseg.data.grid import grid_shape

Triple = tuple[int, int, int]


def network_shape(images: Sequence[Path], *, data: DataConfig) -> Triple:
    """The shape (X, Y, Z) that `prepare` would give a scan, without reading its voxels.

    Args:
        images: one file that holds all channels, or one file for each.

    Raises:
        UserError: a file is missing, its header can't be read, is not that of a volume or has no usable affine;
            the volume would be too large at `data.spacing`.
    """
    shape, affine = image_geometry(images, voxel_size=data.voxel_size)
    return grid_shape(shape[1:], affine, data=data)


def largest_shape(images: Iterable[Sequence[Path]], *, data: DataConfig) -> Triple:
    """Per axis the largest size among the scans."""
    x, y, z = (max(sizes) for sizes in zip(*(network_shape(image, data=data) for image in images)))
    return x, y, z

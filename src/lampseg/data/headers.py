"""Shapes on the network's grid from the headers alone: what a plan needs to know of a dataset."""

from collections.abc import Iterable
from pathlib import Path

from lampseg.config import DataConfig
from lampseg.data.grid import grid_shape
from lampseg.data.volume import read_geometry

Triple = tuple[int, int, int]


def network_shape(image: Path, *, data: DataConfig) -> Triple:
    """The shape (X, Y, Z) that `prepare` would give a scan, without reading its voxels.

    Raises:
        UserError: the file is missing, its header can't be read, is not that of a 3D volume or has no usable affine;
            the volume would be too large at `data.spacing`.
    """
    shape, affine = read_geometry(image)
    return grid_shape(shape, affine, data=data)


def largest_shape(images: Iterable[Path], *, data: DataConfig) -> Triple:
    """Per axis the largest size among the scans."""
    x, y, z = (max(sizes) for sizes in zip(*(network_shape(image, data=data) for image in images)))
    return x, y, z

"""Shapes on the network's grid from the headers alone: what a plan needs to know of a dataset."""

from collections.abc import Iterable

import nibabel
import numpy as np
from nibabel.filebasedimages import ImageFileError

from lampseg.config import DataConfig
from lampseg.data.dataset import Case
from lampseg.errors import UserError

Triple = tuple[int, int, int]


def network_shape(case: Case, *, data: DataConfig) -> Triple:
    """The shape (X, Y, Z) that `prepare` would give the case, without reading its voxels.

    Raises:
        UserError: the file is missing or its header can't be read.
    """
    try:
        image = nibabel.load(case.image)
    except (OSError, ImageFileError, EOFError) as error:
        raise UserError(f"{case.image}: cannot be read as NIfTI ({error})") from error
    shape = tuple(int(size) for size in image.shape[:3])
    if len(shape) != 3:
        raise UserError(f"{case.image}: {len(shape)}D image where a 3D volume is expected")
    orientation = nibabel.orientations.io_orientation(image.affine)
    order = [int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3)]
    x, y, z = (shape[axis] for axis in order)
    if data.spacing is None:
        return x, y, z
    from monai.data.utils import compute_shape_offset  # here: importing MONAI takes seconds

    ras = image.affine @ nibabel.orientations.inv_ornt_aff(orientation, shape)
    own = np.linalg.norm(ras[:3, :3], axis=0)
    wanted = ras.copy()
    wanted[:3, :3] *= np.asarray(data.spacing) / own
    out, _ = compute_shape_offset((x, y, z), ras, wanted, scale_extent=False)
    a, b, c = (int(size) for size in out)
    return a, b, c


def largest_shape(cases: Iterable[Case], *, data: DataConfig) -> Triple:
    """Per axis the largest size among the cases."""
    x, y, z = (max(sizes) for sizes in zip(*(network_shape(case, data=data) for case in cases)))
    return x, y, z

"""The order of a volume's axes: a scan stored in any order and direction, seen (not copied) in RAS order."""

from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]


def in_ras(array: npt.NDArray[Any], affine: Affine) -> tuple[npt.NDArray[Any], Affine]:
    """A view of an array (C, X, Y, Z) whose axes run to the right, front and top, as nearly as they can; its affine.

    Args:
        affine: invertible, from voxel indices to mm (RAS+).
    """
    turned = nib.io_orientation(affine)
    view = nib.apply_orientation(np.moveaxis(array, 0, -1), turned)
    return np.moveaxis(view, -1, 0), affine @ nib.orientations.inv_ornt_aff(turned, array.shape[1:])


def empty_for_ras(shape: Sequence[int], affine: Affine) -> npt.NDArray[np.float32]:
    """An empty array (C, X, Y, Z) in the file's order, whose memory lies so that `in_ras` of it is contiguous.

    A scan that is read into it need not be copied to be turned, which would take twice its memory.
    """
    (channels, *space), turned = shape, nib.io_orientation(affine).astype(int)
    there = np.empty((channels, *(space[axis] for axis in np.argsort(turned[:, 0]))), np.float32)
    # Axis k of the file is axis turned[k, 0] of the memory, backwards if turned[k, 1] is -1.
    view = there.transpose(0, *(1 + turned[:, 0]))
    return view[(slice(None), *(slice(None, None, int(step)) for step in turned[:, 1]))]

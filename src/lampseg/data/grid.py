"""The network's grid: a scan in RAS axis order at the wanted spacing, intensities in the window; and labels back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lampseg.config import DataConfig
from lampseg.data.intensity import to_network_intensities
from lampseg.data.orientation import in_ras
from lampseg.data.volume import Volume, spacing_of
from lampseg.errors import UserError

MAX_VOXELS = 2**31
"""Of a resampled volume (8 GiB in float32): beyond, `data.spacing` is a slip of the pen."""

Affine = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GridInfo:
    """Two grids over one body: the input file's and the network's (affines: voxel index -> mm, RAS+)."""

    input_shape: tuple[int, int, int]
    input_affine: Affine
    shape: tuple[int, int, int]
    affine: Affine

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Of the network's grid, in mm."""
        x, y, z = spacing_of(self.affine)
        return (float(x), float(y), float(z))


def image_to_network(volume: Volume, *, data: DataConfig) -> tuple[npt.NDArray[np.float32], GridInfo]:
    """RAS axis order, trilinear resampling to `data.spacing`, then the intensities (intensity.py).

    Returns:
        The image (C, X, Y, Z), in [0, 1] with a window, else each channel of zero mean and unit deviation unless
        `data.intensity` says otherwise; and both grids.

    Raises:
        UserError: too many voxels at `data.spacing`; `data.intensity` does not fit the channels.
    """
    image, affine = to_grid(volume.array, volume.affine, data, mode="bilinear")
    array = to_network_intensities(image, data)
    return array, GridInfo(volume.shape, volume.affine, triple(array.shape[1:]), affine)


def labels_to_grid(labels: npt.NDArray[Any], info: GridInfo) -> npt.NDArray[Any]:
    """Class indices on the network's grid -> the input file's grid (nearest neighbour), keeping the integer type.

    Exact, voxel for voxel, where the two grids differ only by the order and direction of their axes.
    """
    assert labels.shape == info.shape
    assert labels.dtype.kind in "iu"
    mapping = np.linalg.solve(info.affine, info.input_affine)
    mapping = np.where(np.abs(mapping - np.rint(mapping)) < 1e-6, np.rint(mapping), mapping)  # rounding noise
    out: npt.NDArray[Any] = ndimage.affine_transform(
        labels, mapping, output_shape=info.input_shape, order=0, mode="nearest", prefilter=False
    )
    return out


def grid_shape(shape: Sequence[int], affine: Affine, *, data: DataConfig) -> tuple[int, int, int]:
    """The shape (X, Y, Z) that `image_to_network` gives a volume of this shape and affine.

    Raises:
        UserError: it would have more than 2^31 voxels at `data.spacing`.
    """
    import torch
    from monai.data import MetaTensor

    # One number that poses as a whole volume: the transform, put off, says what shape it would make of it.
    stand_in, turned = in_ras(np.broadcast_to(np.float32(0), (1, *shape)), affine)
    if data.spacing is None:
        return triple(stand_in.shape[1:])
    tensor = MetaTensor(torch.zeros(1).expand(stand_in.shape), affine=torch.from_numpy(turned))
    found = triple([int(size) for size in _spacing(data, mode="nearest")(tensor, lazy=True).peek_pending_shape()])
    if math.prod(found) > MAX_VOXELS:
        raise UserError(
            f"data.spacing: {list(data.spacing)} mm would make {found[0]}x{found[1]}x{found[2]} voxels of a volume of "
            f"{'x'.join(map(str, shape))} with {_millimetres(affine)} mm; choose larger spacings"
        )
    return found


def _spacing(data: DataConfig, *, mode: str) -> Any:
    from monai.transforms import Spacing

    return Spacing(data.spacing, mode=mode, padding_mode="border", dtype=np.float32)


def to_grid(array: npt.NDArray[Any], affine: Affine, data: DataConfig, *, mode: str) -> tuple[Any, Affine]:
    """An array (C, X, Y, Z) as a float32 MetaTensor in RAS order at `data.spacing`, and its affine."""
    import torch
    from monai.data import MetaTensor

    grid_shape(array.shape[1:], affine, data=data)  # refuses what would not fit in memory
    turned, affine = in_ras(array, affine)
    plain = torch.from_numpy(np.ascontiguousarray(turned, dtype=np.float32))
    tensor = MetaTensor(plain, affine=torch.from_numpy(affine))
    if data.spacing is not None:
        tensor = _spacing(data, mode=mode)(tensor)
    return tensor, np.asarray(tensor.affine, dtype=np.float64)


def _millimetres(affine: Affine) -> str:
    return " x ".join(f"{length:.3g}" for length in spacing_of(affine))


def triple(shape: Sequence[int]) -> tuple[int, int, int]:
    """The shape as three Python integers."""
    x, y, z = shape
    return (int(x), int(y), int(z))

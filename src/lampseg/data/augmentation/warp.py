"""Rotation, scale, shear, shift and elastic displacement in one: where in the volume each voxel of a box comes from."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lampseg.data.augmentation.elastic import Elastic

Triple = tuple[int, int, int]
Array = npt.NDArray[np.float64]
Region = Sequence[slice]
Matrix = tuple[tuple[float, float, float], ...]
SAME: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))

_ROUNDING = 2.0**16
"""Places are multiples of 1 / 65536 voxel: exact in float64 whatever box they are counted from."""
_BLOCK = 80_000
"""Voxels of a thread at a time: what it holds of them, some 24 bytes a value, stays in the processor's cache."""


@dataclass(frozen=True)
class Warp:
    """Voxel p of a box of centre c comes from c + matrix (p - c + displacement(p)) + shift, all in voxels."""

    matrix: Matrix
    shift: tuple[float, float, float]
    elastic: Elastic | None = None

    def reach(self, region: Region, size: Triple, corner: Triple) -> tuple[tuple[int, int], ...]:
        """Per axis, first and last voxel index + 1 of the volume between which all that a region needs lies.

        Args:
            region: of the box.
            size: of the box.
            corner: the box's first voxel, in the volume.
        """
        matrix, centre = np.array(self.matrix), (np.array(size) - 1) / 2
        ends = itertools.product(*((part.start, part.stop - 1) for part in region))
        places = (np.array(list(ends)) - centre) @ matrix.T + centre + self.shift + corner
        margin = 0.0 if self.elastic is None else np.abs(matrix) @ self.elastic.bound(size)
        low, high = np.floor(places.min(0) - margin) - 1, np.ceil(places.max(0) + margin) + 2
        return tuple((int(a), int(b)) for a, b in zip(low, high))

    def places(self, region: Region, size: Triple, corner: Triple) -> Array:
        """(3, X, Y, Z): where in the volume each voxel of a region of the box comes from."""
        moved: list[Any] = [
            np.arange(part.start, part.stop).reshape([-1 if axis == at else 1 for at in range(3)])
            - (size[axis] - 1) / 2
            for axis, part in enumerate(region)
        ]
        if self.elastic is not None:
            moved = [place + displacement for place, displacement in zip(moved, self.elastic.field(region, size))]
        x, y, z = moved
        out = np.empty((3, *(part.stop - part.start for part in region)))
        for axis, (a, b, c) in enumerate(self.matrix):  # term by term: a product of matrices rounds as its sizes say
            out[axis] = a * x + b * y + c * z + ((size[axis] - 1) / 2 + self.shift[axis] + corner[axis])
        out *= _ROUNDING
        np.rint(out, out=out)
        out /= _ROUNDING
        return out

    def each_block(self, region: Region, size: Triple, corner: Triple, work: Callable[[slice, Array], object]) -> None:
        """Calls `work` with planes of the region (a slice along X, counted from its start) and with their places.

        Some planes at a time, in as many threads as PyTorch has: what comes out is the same with any number.
        """
        x, y, z = region
        planes = max(1, _BLOCK // max(1, (y.stop - y.start) * (z.stop - z.start)))

        def one(start: int) -> None:
            stop = min(start + planes, x.stop)
            work(slice(start - x.start, stop - x.start), self.places((slice(start, stop), y, z), size, corner))

        starts = range(x.start, x.stop, planes)
        with ThreadPoolExecutor(max(1, min(len(starts), torch.get_num_threads()))) as pool:
            for _ in pool.map(one, starts):
                pass


def inside(places: Array, shape: Triple) -> npt.NDArray[np.bool_]:
    """(X, Y, Z): whether the nearest voxel is one of the volume's."""
    found = np.ones(places.shape[1:], np.bool_)
    for place, length in zip(places, shape):
        found &= (place >= -0.5) & (place < length - 0.5)
    return found


def trilinear(stored: npt.NDArray[Any], start: Sequence[int], places: Array, out: npt.NDArray[Any]) -> None:
    """Fills `out` (C, X, Y, Z) at places of the volume; `stored` is its part from `start` on, whose border goes on."""
    from scipy import ndimage  # here: importing takes a third of a second

    local = places - np.reshape(start, (3, 1, 1, 1))
    for channel, target in zip(stored, out):
        ndimage.map_coordinates(channel, local, output=target, order=1, mode="nearest", prefilter=False)


def nearest(stored: npt.NDArray[Any], start: Sequence[int], places: Array) -> npt.NDArray[Any]:
    """Values (X, Y, Z) of the nearest voxels, halves upwards."""
    x, y, z = (
        np.clip(np.floor(place + 0.5).astype(np.intp) - first, 0, length - 1)
        for place, first, length in zip(places, start, stored.shape)
    )
    found: npt.NDArray[Any] = stored[x, y, z]
    return found

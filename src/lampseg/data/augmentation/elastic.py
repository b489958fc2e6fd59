"""A smooth random displacement field: Gaussian-filtered white noise, drawn on a lattice, evaluated at any voxels."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Triple = tuple[int, int, int]
Array = npt.NDArray[np.float64]

_PER_SIGMA = 2.0
"""Lattice points in one sigma."""
_MARGIN = 8
"""Lattice points beyond the box: four sigma, as far as the noise that reaches into it."""


@dataclass(frozen=True)
class Elastic:
    """The field of Simard et al. (2003), in voxels: each component is white noise through a Gaussian, times a factor.

    White noise in [-1, 1] at every voxel, filtered by a Gaussian of `sigma` voxels, varies so slowly that it may as
    well be drawn on a lattice of h = sigma / 2: the mean of h^3 voxels has 1 / h^3 of a voxel's variance 1/3, and a
    cubic B-spline of values that were filtered by sqrt(sigma^2 - h^2 / 3) is filtered by sigma in all. A voxel's number
    comes from its lattice points in a fixed order: in a part of a box it is bit for bit what it is in the whole.
    """

    sigma: float
    magnitude: float
    seed: tuple[int, ...]

    def field(self, region: Sequence[slice], size: Triple) -> Array:
        """(3, X, Y, Z) displacement of the voxels of a region of a box of `size`."""
        values = self._lattice(size)
        for axis, part in enumerate(region, start=1):
            values = _along(values, axis, np.arange(part.start, part.stop) / self._step + _MARGIN)
        return values

    def bound(self, size: Triple) -> Array:
        """(3,) voxels that no displacement within the box exceeds."""
        found: Array = np.abs(self._lattice(size)).max(axis=(1, 2, 3))
        return found

    @property
    def _step(self) -> float:
        return self.sigma / _PER_SIGMA

    def _lattice(self, size: Triple) -> Array:
        return _lattice(self.sigma, self.magnitude, self.seed, size)


@functools.lru_cache(maxsize=8)  # image, label and mask of one box ask for it
def _lattice(sigma: float, magnitude: float, seed: tuple[int, ...], size: Triple) -> Array:
    from scipy import ndimage  # here: importing takes a third of a second

    step = sigma / _PER_SIGMA
    shape = (3, *(math.ceil(length / step) + 2 * _MARGIN + 2 for length in size))
    noise = np.random.default_rng(seed).normal(scale=math.sqrt(1 / (3 * step**3)), size=shape)
    smooth = math.sqrt(_PER_SIGMA**2 - 1 / 3)
    found: Array = magnitude * ndimage.gaussian_filter(noise, (0, smooth, smooth, smooth), mode="constant")
    return found


def _along(values: Array, axis: int, places: Array) -> Array:
    """Cubic B-spline along one axis of the lattice, at `places` in lattice points."""
    first = np.floor(places).astype(np.intp)
    t = places - first
    weights = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
    shape = [1] * values.ndim
    shape[axis] = len(places)
    out = np.zeros(())
    for offset, weight in enumerate(weights, start=-1):
        out = out + np.take(values, first + offset, axis=axis) * (weight / 6).reshape(shape)
    return out

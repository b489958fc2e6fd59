"""Uniform noise that depends on a voxel's place in its box alone: a part of a box gets its part of the noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Noise:
    """Every channel's every plane along X has a generator of its own."""

    low: float
    high: float
    seed: tuple[int, ...]

    def __call__(self, region: Sequence[slice], size: Triple, *, channels: int) -> npt.NDArray[np.float32]:
        """(C, X, Y, Z) numbers from `low` to `high` for a region of a box of `size`."""
        x, y, z = region
        out = np.empty((channels, *(part.stop - part.start for part in region)), np.float32)
        for channel in range(channels):
            for plane in range(x.start, x.stop):
                rng = np.random.default_rng([*self.seed, channel, plane])
                out[channel, plane - x.start] = rng.random(size[1:], dtype=np.float32)[y, z]
        out *= np.float32(self.high - self.low)
        out += np.float32(self.low)
        return out

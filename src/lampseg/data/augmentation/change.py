"""What is done to one drawn box, as a value: drawn from the configuration, the same on every process."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lampseg.config_augmentation import AffineConfig, AugmentationConfig
from lampseg.data.augmentation.elastic import Elastic
from lampseg.data.augmentation.noise import Noise
from lampseg.data.augmentation.turn import STILL, Turn
from lampseg.data.augmentation.warp import SAME, Matrix, Warp

Triple = tuple[int, int, int]
Seed = tuple[int, ...]
Stream = Callable[[int], np.random.Generator]
# Separate random streams, so that one transform's options leave the others' numbers alone.
_FLIP, _TURN, _NOISE, _DEFORM, _AFFINE, _ELASTIC = range(6)


@dataclass(frozen=True)
class Change:
    """First the warp, then the turn, then the noise."""

    warp: Warp | None = None
    turn: Turn = STILL
    noise: Noise | None = None


def draw_change(config: AugmentationConfig, seed: Seed, *, size: Triple) -> Change | None:
    """A pure function of its arguments; None: the box stays as it is.

    Args:
        seed: of this box: run, curriculum stage, step, position in the batch.
        size: of the box.
    """

    def stream(kind: int) -> np.random.Generator:
        return np.random.default_rng([*seed, kind])

    change = Change(_warp(config, seed, stream, size), _turn(config, stream, size), _noise(config, seed, stream))
    return None if change == Change() else change


def _turn(config: AugmentationConfig, stream: Stream, size: Triple) -> Turn:
    flips = [False, False, False]
    if config.flip is not None:
        drawn = stream(_FLIP).random(3) < config.flip.probability
        flips = [axis in config.flip.axes and bool(flip) for axis, flip in zip("xyz", drawn)]
    quarters = 0
    if config.rotate90 is not None:
        rng = stream(_TURN)
        if rng.random() < config.rotate90.probability:
            quarters = int(rng.integers(1, 4)) if size[0] == size[1] else 2
    return Turn.of(flips=flips, quarters=quarters)


def _noise(config: AugmentationConfig, seed: Seed, stream: Stream) -> Noise | None:
    noise = config.noise
    if noise is None or stream(_NOISE).random() >= noise.probability:
        return None
    return Noise(noise.low, noise.high, (*seed, _NOISE))


def _warp(config: AugmentationConfig, seed: Seed, stream: Stream, size: Triple) -> Warp | None:
    if not config.resamples:
        return None
    decides = stream(_DEFORM).random()
    matrix, shift, elastic = SAME, (0.0, 0.0, 0.0), None
    if config.affine is not None and decides < config.affine.probability:
        matrix, shift = _affine(config.affine, stream(_AFFINE), size)
    if config.elastic is not None and decides < config.elastic.probability:
        rng = stream(_ELASTIC)
        sigma, magnitude = rng.uniform(*config.elastic.sigma_voxels), rng.uniform(*config.elastic.magnitude)
        elastic = Elastic(float(sigma), float(magnitude), (*seed, _ELASTIC))
    if elastic is None and matrix == SAME and not any(shift):
        return None
    return Warp(matrix, shift, elastic)


def _affine(config: AffineConfig, rng: np.random.Generator, size: Triple) -> tuple[Matrix, tuple[float, float, float]]:
    """rotate shear (scale p + shift), as MONAI's RandAffine composes them; three shear factors, as it draws."""
    from monai.transforms.utils import create_rotate, create_scale, create_shear  # here: importing takes seconds

    turn, tangent = math.radians(config.rotation_degrees), math.tan(math.radians(config.shear_degrees))
    rotate = np.asarray(create_rotate(3, rng.uniform(-turn, turn, 3).tolist()))[:3, :3]
    shear = np.asarray(create_shear(3, rng.uniform(-tangent, tangent, 3).tolist()))[:3, :3]
    scale = np.asarray(create_scale(3, (1 + rng.uniform(-config.scale, config.scale, 3)).tolist()))[:3, :3]
    shift = rng.uniform(-config.shift_fraction, config.shift_fraction, 3) * size
    matrix = tuple((float(a), float(b), float(c)) for a, b, c in rotate @ shear @ scale)
    x, y, z = (float(value) for value in rotate @ shear @ shift)
    return matrix, (x, y, z)

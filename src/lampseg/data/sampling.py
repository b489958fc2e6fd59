"""Which patch is drawn at which step: a pure function of seed, curriculum stage, step and position in the batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from lampseg.data.grid import triple
from lampseg.data.preprocess import PreparedCase
from lampseg.errors import UserError

Triple = tuple[int, int, int]
_ORDER, _PATCH = 0, 1  # separate random streams: the order of the cases, and the patches


@dataclass(frozen=True)
class Draw:
    """A box of one case's volume. `corner` may be negative and the box may run over the border: padded with 0."""

    case: int
    """Index into the sampler's cases."""
    corner: Triple
    size: Triple

    def part(self, region: tuple[slice, ...]) -> "Draw":
        """A box within this one."""
        corner = tuple(at + part.start for at, part in zip(self.corner, region, strict=True))
        return Draw(self.case, cast(Triple, corner), cast(Triple, tuple(part.stop - part.start for part in region)))


class Sampler:
    """Draws the patches (or whole volumes) of one curriculum stage.

    No state is kept between steps, so any process, any number of devices and a resumed run draw the same. Each epoch
    visits every case once in a shuffled order; the last batch is filled up from the start of that order.

    Args:
        patch: (X, Y, Z) in voxels, or None for whole volumes, padded at their ends to multiples of `stride`.
        batch: draws per step.
        stride: the network's total down-sampling along each axis.
        stage: index of the curriculum stage.
        positive: fraction of patches around a foreground voxel; the others lie anywhere, uniformly.
        class_balanced: choose the voxel's class first, uniformly over the classes present in the case, instead of
            in proportion to their voxels.

    Raises:
        UserError: there is no case, or the patch is larger than every volume along some axis.
    """

    def __init__(
        self,
        cases: Sequence[PreparedCase],
        *,
        patch: Triple | None,
        batch: int,
        stride: Triple,
        seed: int,
        stage: int,
        positive: float,
        class_balanced: bool,
    ) -> None:
        assert batch > 0
        assert 0 <= positive <= 1
        if not cases:
            raise UserError("data: there is no case to draw from; list more training cases or lower data.validation")
        assert all(case.label is not None for case in cases)
        self.cases = tuple(cases)
        self.patch, self.batch, self.stride = patch, batch, stride
        self.positive, self.class_balanced = positive, class_balanced
        self._seeds = (seed, stage)
        if patch is not None:
            self._check_patch(patch)

    @property
    def channels(self) -> int:
        """Of every image."""
        return self.cases[0].channels

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every case was visited: ceil(cases / batch)."""
        return -(-len(self.cases) // self.batch)

    def draws(self, step: int) -> tuple[Draw, ...]:
        """The batch of `step`, which counts from 0 within the curriculum stage."""
        epoch, first = divmod(step, self.steps_per_epoch)
        order = self._rng(_ORDER, epoch).permutation(len(self.cases))
        positions = range(self.batch)
        picked = [int(order[(first * self.batch + position) % len(order)]) for position in positions]
        return tuple(self._draw(case, self._rng(_PATCH, step, position)) for case, position in zip(picked, positions))

    def image(self, draw: Draw) -> npt.NDArray[np.float32]:
        """Intensities, (C, X, Y, Z); padding is 0, the window's lower end (or the mean, without a window)."""
        cut: npt.NDArray[np.float32] = _cut(self.cases[draw.case].image, draw, np.float32)
        return cut

    def label(self, draw: Draw) -> npt.NDArray[np.int64]:
        """Class indices, (X, Y, Z); padding is background."""
        path = self.cases[draw.case].label
        assert path is not None
        return _cut(path, draw, np.int64)

    def valid(self, draw: Draw) -> npt.NDArray[np.bool_]:
        """(X, Y, Z), True inside the volume and False in the padding."""
        mask = np.zeros(draw.size, np.bool_)
        _, inside = _overlap(draw, self.cases[draw.case].shape)
        mask[inside] = True
        return mask

    def padded(self, draw: Draw) -> bool:
        """Whether the box runs over the border of the volume."""
        shape = self.cases[draw.case].shape
        return any(at < 0 or at + size > end for at, size, end in zip(draw.corner, draw.size, shape))

    def annotated(self, draw: Draw) -> npt.NDArray[np.bool_]:
        """(classes,), background first (True): the classes whose truth is known in this case."""
        case = self.cases[draw.case]
        known = np.zeros(len(case.voxels), np.bool_)
        known[[0, *case.annotated]] = True
        return known

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([*self._seeds, *stream])

    def _draw(self, index: int, rng: np.random.Generator) -> Draw:
        case = self.cases[index]
        if self.patch is None:
            x, y, z = (-(-size // step) * step for size, step in zip(case.shape, self.stride))
            return Draw(index, (0, 0, 0), (x, y, z))
        centre = self._centre(case, rng) if rng.random() < self.positive else None
        x, y, z = (
            _corner(size, patch, None if centre is None else int(centre[axis]), rng)
            for axis, (size, patch) in enumerate(zip(case.shape, self.patch))
        )
        return Draw(index, (x, y, z), self.patch)

    def _centre(self, case: PreparedCase, rng: np.random.Generator) -> npt.NDArray[np.int32] | None:
        """A random foreground voxel, or None where the case has none."""
        voxels = np.array(case.voxels[1:], dtype=np.float64)
        if not voxels.any():
            return None
        share = (voxels > 0).astype(np.float64) if self.class_balanced else voxels
        index = 1 + int(rng.choice(len(voxels), p=share / share.sum()))
        assert case.points is not None
        with np.load(case.points) as points:
            found: npt.NDArray[np.int32] = points[f"class_{index}"]
        centre: npt.NDArray[np.int32] = found[rng.integers(len(found))]
        return centre

    def _check_patch(self, patch: Triple) -> None:
        for axis, size in enumerate(patch):
            largest = max(self.cases, key=lambda case: case.shape[axis])
            if size > largest.shape[axis]:
                raise UserError(
                    f"curriculum.{self._seeds[1]}.patch: patch {_by(patch)} is larger than every volume along "
                    f"{'XYZ'[axis]} (the largest there is {largest.id}, {_by(largest.shape)} voxels); choose a smaller "
                    "patch, `whole`, or a finer data.spacing"
                )


def _corner(size: int, patch: int, centre: int | None, rng: np.random.Generator) -> int:
    """First voxel of the patch along one axis of a volume of `size` voxels."""
    if size <= patch:
        return -((patch - size) // 2)
    if centre is None:
        return int(rng.integers(size - patch + 1))
    # Not always the exact centre: else the network learns that the organ sits there.
    jitter = int(rng.integers(-(patch // 4), patch // 4 + 1))
    return min(max(centre - patch // 2 + jitter, 0), size - patch)


def _overlap(draw: Draw, shape: Triple) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """The part of the box that lies in the volume, in the volume's indices and in the box's."""
    spans = [
        (max(corner, 0), min(corner + size, length)) for corner, size, length in zip(draw.corner, draw.size, shape)
    ]
    spans = [(start, max(start, stop)) for start, stop in spans]  # a box may lie outside
    volume = tuple(slice(start, stop) for start, stop in spans)
    box = tuple(slice(start - corner, stop - corner) for (start, stop), corner in zip(spans, draw.corner))
    return volume, box


def _cut(path: Path, draw: Draw, dtype: type[np.generic]) -> npt.NDArray[Any]:
    stored = np.load(path, mmap_mode="r")  # only the pages of the box are read
    (x, y, z), (a, b, c) = _overlap(draw, triple(stored.shape[-3:]))
    out = np.zeros((*stored.shape[:-3], *draw.size), dtype)
    out[..., a, b, c] = stored[..., x, y, z]
    return out


def _by(shape: Triple) -> str:
    return "x".join(str(size) for size in shape)

"""Which patch is drawn at which step: a pure function of seed, curriculum stage, step and position in the batch."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from lampseg.config_augmentation import AugmentationConfig
from lampseg.data.augmentation import draw_change, swapped
from lampseg.data.boxes import Draw, box_image, box_label, box_padded, box_valid
from lampseg.data.preprocess import PreparedCase
from lampseg.errors import UserError

Triple = tuple[int, int, int]
_ORDER, _PATCH, _CHANGE = 0, 1, 2  # separate random streams: the order of the cases, the patches, the augmentation


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
        augmentation: what is done to the drawn boxes at random; None: nothing.
        pairs: class indices of left and right organs, whose labels are exchanged in mirrored boxes.

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
        augmentation: AugmentationConfig | None = None,
        pairs: tuple[tuple[int, int], ...] = (),
    ) -> None:
        assert batch > 0
        assert 0 <= positive <= 1
        if not cases:
            raise UserError("data: there is no case to draw from; list more training cases or lower data.validation")
        assert all(case.label is not None for case in cases)
        self.cases = tuple(cases)
        self.patch, self.batch, self.stride = patch, batch, stride
        self.positive, self.class_balanced = positive, class_balanced
        self.augmentation = augmentation if augmentation is not None and augmentation.used else None
        self.pairs = pairs
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
        return tuple(self._draw(case, step, position) for case, position in zip(picked, positions))

    def image(self, draw: Draw) -> npt.NDArray[np.float32]:
        """Intensities, (C, X, Y, Z); padding is 0, the window's lower end (or the mean, without a window)."""
        return box_image(self.cases[draw.case], draw)

    def label(self, draw: Draw) -> npt.NDArray[np.int64]:
        """Class indices, (X, Y, Z); padding is background."""
        label = box_label(self.cases[draw.case], draw)
        return self._names(draw)[label] if self._mirrored(draw) else label.astype(np.int64)

    def valid(self, draw: Draw) -> npt.NDArray[np.bool_]:
        """(X, Y, Z), True inside the volume and False in the padding."""
        return box_valid(self.cases[draw.case], draw)

    def padded(self, draw: Draw) -> bool:
        """Whether the box runs over the border of the volume, or may, after what the augmentation does to it."""
        return box_padded(self.cases[draw.case], draw)

    def annotated(self, draw: Draw) -> npt.NDArray[np.bool_]:
        """(classes,), background first (True): the classes whose truth is known in this case."""
        case = self.cases[draw.case]
        known = np.zeros(len(case.voxels), np.bool_)
        known[[0, *case.annotated]] = True
        return known[self._names(draw)] if self._mirrored(draw) else known

    def _mirrored(self, draw: Draw) -> bool:
        return bool(self.pairs) and draw.change is not None and draw.change.turn.mirrors

    def _names(self, draw: Draw) -> npt.NDArray[np.int64]:
        """What each class is called in a mirrored box."""
        return np.array(swapped(self.pairs, len(self.cases[draw.case].voxels)), np.int64)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng([*self._seeds, *stream])

    def _draw(self, index: int, step: int, position: int) -> Draw:
        draw = self._box(index, self._rng(_PATCH, step, position))
        if self.augmentation is None:
            return draw
        seed = (*self._seeds, _CHANGE, step, position)
        return replace(draw, change=draw_change(self.augmentation, seed, size=draw.size))

    def _box(self, index: int, rng: np.random.Generator) -> Draw:
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


def _by(shape: Triple) -> str:
    return "x".join(str(size) for size in shape)

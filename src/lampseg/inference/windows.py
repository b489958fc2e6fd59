"""Sliding windows: logits of overlapping windows, blended; the planes of a volume are done one after the other."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lampseg.errors import UserError
from lampseg.inference.mirror import Mirror
from lampseg.inference.model import Segmenter, Shape
from lampseg.inference.scores import probabilities
from lampseg.inference.tiles import Box, Tile
from lampseg.training.supervision import logits_of


@dataclass(frozen=True)
class SlidingWindow:
    """Windows of `size` voxels that overlap by a fraction, blended with a Gaussian or constant weight.

    As MONAI's SlidingWindowInferer: the same windows, the same weights. But what is blended is one row of windows (C x
    size[0] planes), not the whole volume.
    """

    size: tuple[int, int, int]
    overlap: float = 0.25
    mode: str = "gaussian"
    batch: int | None = None
    """Windows in one pass; each such batch is a micro-batch of the pipeline. None: as many as `windows_at_once`."""
    device: str | None = None
    """Where they are blended: `cpu`, or None for the network's device if there is memory for it, else the CPU."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap: {self.overlap} is not a fraction from 0 to below 1")
        if self.batch is not None and self.batch < 1:
            raise UserError(f"batch: {self.batch} windows in one pass are not possible; give 1 or more")

    @property
    def per_pass(self) -> int:
        """Windows in one pass."""
        return windows_at_once(self.size) if self.batch is None else self.batch

    def places(self, shape: Sequence[int]) -> list[Box]:
        """The windows over a volume (X, Y, Z) not smaller than one; X changes slowest."""
        from monai.data.utils import dense_patch_slices  # here: importing MONAI takes seconds

        steps = [
            side if side == size else max(1, int(size * (1 - self.overlap))) for side, size in zip(shape, self.size)
        ]
        return [(place[0], place[1], place[2]) for place in dense_patch_slices(shape, self.size, steps)]

    def weights(self) -> Tensor:
        """Of a window's voxels, on the CPU."""
        from monai.data.utils import compute_importance_map

        found: Tensor = compute_importance_map(self.size, mode=self.mode)
        return found


def windows_at_once(size: Sequence[int]) -> int:
    """Four windows of up to 64^3 voxels, fewer of larger ones: a small one alone leaves a device idle.

    On the CPU it is worse: PyTorch has a slow convolution for one small sample (docs/concepts/pipeline.md).
    """
    return max(1, min(4, 4 * 64**3 // math.prod(size)))


def window_scores(
    model: Segmenter,
    shape: Shape,
    window: SlidingWindow,
    *,
    load: Callable[[Box, tuple[int, ...]], Tensor],
    mirror: Mirror | None = None,
) -> Iterator[Tile]:
    """The blended scores of a volume, some finished planes along X at a time, where the output is; elsewhere nothing.

    Called on every rank of a replica alike, to its end: all windows pass through the pipeline as micro-batches of one
    timetable.

    Args:
        shape: (1, C, X, Y, Z), not smaller than the window.
        load: gives a window (1, C, *size), flipped along some axes; called where the first stage is.
        mirror: each window's probabilities are averaged over its flips.
    """
    mirror = mirror or Mirror()
    places = window.places(shape[2:])
    each = min(window.per_pass, len(places))
    batches = [places[n : n + each] for n in range(0, len(places), each)]
    passes = [(batch, flip) for batch in batches for flip in mirror.flips]

    def give(m: int) -> Tensor:
        batch, flip = passes[m]
        full = [*batch, *batch[-1:] * (each - len(batch))]  # all of one size: another would be another plan
        loaded = [load(place, flip) for place in full]
        return torch.cat(loaded) if each > 1 else loaded[0]

    found = model.runner.parts(
        [(each, shape[1], *window.size)] * len(passes), load=give, logits=lambda output: logits_of(output)[0]
    )
    blend: _Blend | None = None
    for batch in batches:
        totals: list[Tensor | None] = [None] * len(batch)
        for flip in mirror.flips:
            output = next(found)
            if output is None:
                continue
            for n in range(len(batch)):
                scores = output[n]
                if mirror.averages:
                    scores = mirror.back(probabilities(scores), flip)
                before = totals[n]
                totals[n] = scores if before is None else before.add_(scores)
        for place, total in zip(batch, totals):
            if total is None:
                continue
            if mirror.averages:
                total.div_(len(mirror.flips))
            if blend is None:
                blend = _Blend(window, shape[2:], like=total)
            yield from blend.until(place[0].start)
            blend.add(total, place)
        del totals
    if blend is not None:
        yield from blend.until(shape[2])
    rest = list(found)  # a pipeline waits for its last messages
    assert not rest


def sliding_labels(model: Segmenter, x: Tensor, window: SlidingWindow) -> Tensor | None:
    """Class indices (X, Y, Z) of a padded volume x (1, C, X, Y, Z), where the output is; elsewhere None.

    Every rank of a replica calls it; the voxels are read where the first stage is, elsewhere the shape alone. A volume
    smaller than a window is filled up with zeros at its end.
    """
    shape = reached(tuple(x.shape), window.size)

    def load(place: Box, flip: tuple[int, ...]) -> Tensor:
        return padded_window(x, place)

    found = [tile.values.argmax(0) for tile in window_scores(model, shape, window, load=load)]
    if not found:
        return None
    a, b, c = x.shape[2:]
    return torch.cat(found)[:a, :b, :c]


def reached(shape: Shape, size: Sequence[int]) -> Shape:
    """The shape (1, C, X, Y, Z), made at least as large as a window."""
    return (*shape[:2], *(max(side, least) for side, least in zip(shape[2:], size)))


def padded_window(x: Tensor, place: Box) -> Tensor:
    """A window of x (1, C, X, Y, Z), filled up with zeros beyond its end."""
    inside = x[(..., *place)]
    missing = [part.stop - part.start - size for part, size in zip(place, inside.shape[2:])]
    if not any(missing):
        return inside
    return torch.nn.functional.pad(inside, [n for more in reversed(missing) for n in (0, more)])


class _Blend:
    """The weighted sum of windows over the planes that a row of windows covers."""

    def __init__(self, window: SlidingWindow, shape: Sequence[int], *, like: Tensor) -> None:
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        depth = window.size[0]
        size = (len(like) + 1) * depth * shape[1] * shape[2] * dtype.itemsize
        self._device = _blending_device(window, like.device, size)
        self._weights = window.weights().to(self._device, dtype)
        self._sums = torch.zeros((len(like) + 1, depth, *shape[1:]), dtype=dtype, device=self._device)
        self._first, self._end = 0, shape[0]

    def add(self, scores: Tensor, place: Box) -> None:
        assert place[0].start == self._first
        weighted = scores.to(self._device, self._sums.dtype) * self._weights
        self._sums[:-1, :, place[1], place[2]] += weighted
        self._sums[-1, :, place[1], place[2]] += self._weights  # the last channel counts

    def until(self, plane: int) -> Iterator[Tile]:
        """The planes before this one, to which no further window adds."""
        count = plane - self._first
        if count == 0:
            return
        done = self._sums[:-1, :count] / self._sums[-1:, :count]
        shape = self._sums.shape
        yield Tile(done, (slice(self._first, plane), slice(0, shape[2]), slice(0, shape[3])))
        del done
        if plane < self._end:
            self._sums[:, : shape[1] - count] = self._sums[:, count:].clone()
            self._sums[:, shape[1] - count :] = 0
        self._first = plane


def _blending_device(window: SlidingWindow, device: torch.device, size: int) -> torch.device:
    """The network's device, unless another is asked for or twice the sum would not fit into its free memory."""
    if window.device is not None:
        return torch.device(window.device)
    if device.type != "cuda":
        return device
    free: Any = torch.cuda.mem_get_info(device)[0]
    return device if 2 * size < free else torch.device("cpu")

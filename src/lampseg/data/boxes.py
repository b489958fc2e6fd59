"""A box of one case's volume: what it is, and its voxels, read from disk and changed as the augmentation says."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from lampseg.data.augmentation import Change
from lampseg.data.augmentation.warp import Warp, inside, nearest, trilinear
from lampseg.data.preprocess import PreparedCase

Triple = tuple[int, int, int]
Region = tuple[slice, ...]
Places = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Draw:
    """A box of one case's volume. `corner` may be negative and the box may run over the border: padded with 0."""

    case: int
    """Index into the sampler's cases."""
    corner: Triple
    size: Triple
    change: Change | None = None
    """What is done to the box; its shape stays `size`."""
    within: Region | None = None
    """The part of the changed box that is wanted; None: all."""

    def part(self, region: Region) -> "Draw":
        """A box within this one, after its change."""
        if self.change is not None:
            assert self.within is None
            return replace(self, within=region)
        corner = tuple(at + part.start for at, part in zip(self.corner, region, strict=True))
        return Draw(self.case, cast(Triple, corner), cast(Triple, _extent(region)))

    @property
    def region(self) -> Region:
        """The part of the changed box that is wanted."""
        return self.within or tuple(slice(0, size) for size in self.size)

    @property
    def source(self) -> Region:
        """The part of the box from which it comes, before flips and turns."""
        return self.region if self.change is None else self.change.turn.source(self.region, self.size)


def box_image(case: PreparedCase, draw: Draw) -> npt.NDArray[np.float32]:
    """Intensities, (C, X, Y, Z); padding is 0."""
    warp = None if draw.change is None else draw.change.warp
    if warp is None:
        image: npt.NDArray[np.float32] = _cut(
            case.image_part, draw, case.shape, channels=(case.channels,), dtype=np.float32
        )
    else:
        image = np.zeros((case.channels, *_extent(draw.source)), np.float32)
        stored, start = _around(case.image_part, case, draw, warp)

        def interpolate(planes: slice, places: Places) -> None:
            trilinear(stored, start, places, image[:, planes])
            image[:, planes] *= inside(places, case.shape)

        if stored is not None:
            warp.each_block(draw.source, draw.size, draw.corner, interpolate)
    if draw.change is None:
        return image
    image = draw.change.turn(image)
    if draw.change.noise is not None:
        noise = draw.change.noise(draw.region, draw.size, channels=case.channels)
        image = image + noise * box_valid(case, draw)
    return np.ascontiguousarray(image)


def box_label(case: PreparedCase, draw: Draw) -> npt.NDArray[np.uint8]:
    """Class indices, (X, Y, Z); padding is background."""
    warp = None if draw.change is None else draw.change.warp
    if warp is None:
        label = _cut(case.label_part, draw, case.shape, channels=(), dtype=np.uint8)
    else:
        label = np.zeros(_extent(draw.source), np.uint8)
        stored, start = _around(case.label_part, case, draw, warp)

        def look_up(planes: slice, places: Places) -> None:
            label[planes] = nearest(stored, start, places) * inside(places, case.shape)

        if stored is not None:
            warp.each_block(draw.source, draw.size, draw.corner, look_up)
    return label if draw.change is None else np.ascontiguousarray(draw.change.turn(label))


def box_valid(case: PreparedCase, draw: Draw) -> npt.NDArray[np.bool_]:
    """(X, Y, Z), True for voxels of the volume and False for padding."""
    valid = np.zeros(_extent(draw.source), np.bool_)
    warp = None if draw.change is None else draw.change.warp
    if warp is None:
        _, box = _overlap(draw, case.shape)
        valid[box] = True
    else:

        def mark(planes: slice, places: Places) -> None:
            valid[planes] = inside(places, case.shape)

        warp.each_block(draw.source, draw.size, draw.corner, mark)
    return valid if draw.change is None else np.ascontiguousarray(draw.change.turn(valid))


def box_padded(case: PreparedCase, draw: Draw) -> bool:
    """Whether the box, not only the part of it that is wanted, runs over the border, or may after its warp."""
    ends: Any = [(at, at + size) for at, size in zip(draw.corner, draw.size)]
    if draw.change is not None and draw.change.warp is not None:
        ends = draw.change.warp.reach(tuple(slice(0, size) for size in draw.size), draw.size, draw.corner)
    return any(start < 0 or stop > length for (start, stop), length in zip(ends, case.shape))


def _cut(
    read: Callable[[Region], Any], draw: Draw, shape: Triple, *, channels: tuple[int, ...], dtype: type[np.generic]
) -> Any:
    volume, box = _overlap(draw, shape)
    out: Any = np.zeros((*channels, *_extent(draw.source)), dtype)
    if all(part.stop > part.start for part in volume):
        out[(..., *box)] = read(volume)
    return out


def _around(read: Callable[[Region], Any], case: PreparedCase, draw: Draw, warp: Warp) -> tuple[Any, list[int]]:
    """The part of the volume that the warped box needs, and its first voxel; None if it needs nothing."""
    reach = warp.reach(draw.source, draw.size, draw.corner)
    region = tuple(slice(max(start, 0), min(stop, length)) for (start, stop), length in zip(reach, case.shape))
    if any(part.stop <= part.start for part in region):
        return None, []
    return read(region), [part.start for part in region]


def _overlap(draw: Draw, shape: Triple) -> tuple[Region, Region]:
    """What of the wanted part lies in the volume, in the volume's indices and in the part's."""
    corner = [at + part.start for at, part in zip(draw.corner, draw.source)]
    spans = [
        (max(first, 0), min(first + size, length)) for first, size, length in zip(corner, _extent(draw.source), shape)
    ]
    spans = [(start, max(start, stop)) for start, stop in spans]  # a box may lie outside
    volume = tuple(slice(start, stop) for start, stop in spans)
    box = tuple(slice(start - first, stop - first) for (start, stop), first in zip(spans, corner))
    return volume, box


def _extent(region: Region) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in region)

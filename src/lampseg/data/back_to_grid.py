"""Scores on the network's grid -> labels on the input's: interpolated a few planes at a time, the largest class taken.

Scores of all classes on the input's grid never exist: they would take classes x 4 bytes a voxel of what may be a far
finer grid than the network's.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from lampseg.data.grid import GridInfo

SLAB_VOXELS = 2**21
"""Of the input's grid, whose labels are found at a time; at least one plane. Scores of one class: 8 MiB."""
_SLANT = 0.05
"""Voxels of the network's grid by which axes may run askew over half the volume and still count as parallel: affines in
headers are rounded."""
_ROUNDING = 1e-3
"""Voxels: nearer to a voxel's centre, a coordinate is that voxel."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Line:
    """One axis of the input's grid: where its planes lie along an axis of the network's."""

    axis: int
    """Of the network's grid."""
    lower: npt.NDArray[np.int64]
    """For each plane of the input the one below it on the network's grid."""
    weights: npt.NDArray[np.float64] | None
    """Of the plane after that one; None if each plane of the input lies on one of the network's."""

    def decided(self, planes: slice) -> slice:
        """The planes of the input that lie between these of the network's grid: neighbours of each other."""
        reach = 0 if self.weights is None else 1
        found = np.flatnonzero((self.lower >= planes.start) & (self.lower + reach < planes.stop))
        return slice(int(found[0]), int(found[-1]) + 1) if found.size else slice(0, 0)

    def needed(self, planes: slice) -> slice:
        """The planes of the network's grid between which these of the input lie."""
        lower = self.lower[planes]
        return slice(int(lower.min()), int(lower.max()) + (1 if self.weights is None else 2))


def lines_of(info: GridInfo) -> tuple[Line, Line, Line] | None:
    """How the input's axes run along the network's; None if they are not parallel (a sheared affine, resampled)."""
    mapping = np.linalg.solve(info.affine, info.input_affine)
    linear = mapping[:3, :3]
    axes = (np.abs(linear) * np.array(info.spacing)[:, None]).argmax(0)
    if sorted(axes) != [0, 1, 2]:
        return None
    centre = (np.array(info.input_shape) - 1) / 2
    lines = []
    for k, axis in enumerate(axes.tolist()):
        others = [j for j in range(3) if j != k]
        if np.abs(linear[axis, others]) @ centre[others] > _SLANT:
            return None
        offset = mapping[axis, 3] + linear[axis, others] @ centre[others]
        last = info.shape[axis] - 1
        place = np.clip(linear[axis, k] * np.arange(info.input_shape[k]) + offset, 0, last)
        nearest = np.rint(place)
        if np.abs(place - nearest).max() < _ROUNDING:
            lines.append(Line(axis, nearest.astype(np.int64), None))
            continue
        lower = np.minimum(np.floor(place), last - 1)
        lines.append(Line(axis, lower.astype(np.int64), place - lower))
    first, second, third = lines
    return (first, second, third)


def region_of(lines: tuple[Line, Line, Line], box: Box) -> Box:
    """The box of the input's grid whose labels the scores on a box of the network's grid decide."""
    x, y, z = (line.decided(box[line.axis]) for line in lines)
    return (x, y, z)


def labels_in(
    region: Box,
    lines: tuple[Line, Line, Line],
    scores: Callable[[Box], Tensor],
    *,
    out: npt.NDArray[Any] | None = None,
    voxels: int = SLAB_VOXELS,
) -> npt.NDArray[Any]:
    """The class of the largest score, trilinear, for each voxel of a box of the input's grid.

    Beyond the outermost voxel centres of the network's grid the score is that of the border. Where the grids differ
    only by the order and direction of their axes, nothing is interpolated. The result does not depend on how the volume
    is cut into boxes: each voxel is computed from the same numbers in the same order.

    Args:
        scores: gives the scores (C, *box) on a box of the network's grid.
        out: where they are written, of the region's shape; None: a new array (uint8).
        voxels: of the input's grid, found at a time.
    """
    shape = tuple(part.stop - part.start for part in region)
    out = np.empty(shape, np.uint8) if out is None else out
    if 0 in shape:
        return out
    step = max(1, voxels // (shape[1] * shape[2]))
    for begin in range(region[0].start, region[0].stop, step):
        slab = (slice(begin, min(begin + step, region[0].stop)), region[1], region[2])
        need = [slice(0, 0)] * 3
        for line, part in zip(lines, slab):
            need[line.axis] = line.needed(part)
        values = scores((need[0], need[1], need[2]))
        turned = values.permute(0, *(1 + line.axis for line in lines))
        ways = [_Way(line, part, values) for line, part in zip(lines, slab)]
        best, labels = None, None
        for index in range(len(turned)):
            found = turned[index]
            if not found.is_floating_point() or found.dtype in (torch.bfloat16, torch.float16):
                found = found.float()
            for dim, way in enumerate(ways):
                found = way.along(found, dim)
            if best is None or labels is None:
                best, labels = found, torch.zeros(found.shape, dtype=torch.int32, device=found.device)
                continue
            labels.masked_fill_(found > best, index)
            best = torch.maximum(best, found)
        assert labels is not None
        out[slab[0].start - region[0].start : slab[0].stop - region[0].start] = labels.cpu().numpy()
    return out


class _Way:
    """Linear interpolation along one axis, from the planes that are needed to the input's."""

    def __init__(self, line: Line, planes: slice, like: Tensor) -> None:
        lower = line.lower[planes] - line.needed(planes).start
        self._lower = torch.from_numpy(lower).to(like.device)
        self._weights = None
        if line.weights is not None:
            kind = torch.float64 if like.dtype == torch.float64 else torch.float32
            self._weights = torch.from_numpy(line.weights[planes]).to(like.device, kind)

    def along(self, values: Tensor, dim: int) -> Tensor:
        below = values.index_select(dim, self._lower)
        if self._weights is None:
            return below
        shape = [1] * values.dim()
        shape[dim] = -1
        weights = self._weights.view(shape)
        # Not `lerp`: it rounds otherwise in the last few elements of a row, which depend on the cut.
        above = values.index_select(dim, self._lower + 1)
        return below.mul_(1 - weights).add_(above.mul_(weights))

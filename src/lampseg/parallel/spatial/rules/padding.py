"""Padding: the first and the last rank of an axis pad their ends of the volume, the others nothing."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from lampseg.parallel.spatial.layout import Shard, layout_of
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.parallel.spatial.register import exact
from lampseg.parallel.spatial.window import some_empty, spans

Function = Callable[..., Any]


@exact(F.pad, torch._C._nn.pad, torch.constant_pad_nd)
def pad(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """With a constant, the outermost planes or their mirror image; negative widths cut planes off.

    Along an axis that cuts the dimension the edges of slabs stay where they are: the ends grow (or shrink). Where a
    rank would be left with nothing, or has too few planes to mirror, the axis' slabs are put together first.
    """
    given = {**dict(zip(("input", "pad", "mode", "value"), args)), **kwargs}
    if func is torch.constant_pad_nd:
        given = {**dict(zip(("input", "pad", "value"), args)), **kwargs}
    x, widths, how = given.pop("input"), list(given.pop("pad")), given.get("mode", "constant")
    layout: list[Shard] = []
    again: list[Shard] = []
    for shard in layout_of(x):
        at = 2 * (x.dim() - 1 - shard.dim)
        before, after = widths[at : at + 2] if at < len(widths) else (0, 0)
        if not before and not after:
            layout.append(shard)
            continue
        if shard.merged:
            raise mode.refuse(func, "it pads voxels that were flattened")
        if how == "circular":
            raise mode.refuse(
                func, "circular padding of a dimension that is cut into slabs", remedy="pad with a constant or reflect"
            )
        if not mode.regular:
            raise mode.refuse(
                func,
                "it may depend on a size that is odd in the slab and even in the whole, as edges of slabs are no "
                "multiples of the network's total stride",
                remedy="use volumes whose size is, and fewer ranks along this axis",
            )
        padded = _padded(shard, before, after)
        if some_empty(padded.edges) or not _local(shard, before, after, mirrored=how == "reflect"):
            x = mode.gathered(x, shard)
            again += [] if some_empty(padded.edges) else [padded]
            continue
        axis = mode.axes[shard.axis]
        widths[at : at + 2] = before if axis.rank == 0 else 0, after if axis.rank == axis.size - 1 else 0
        layout.append(padded)
    out = mode.marked(func(x, widths, **given), layout)
    for shard in again:
        out = mode.fitted(out, shard)
    return out


def _padded(shard: Shard, before: int, after: int) -> Shard:
    """Where the slabs' edges lie in the padded whole."""
    total = shard.total + before + after
    inner = (min(max(edge + before, 0), total) for edge in shard.edges[1:-1])
    return Shard(shard.axis, shard.dim, (0, *inner, total))


def _local(shard: Shard, before: int, after: int, *, mirrored: bool) -> bool:
    """Whether the first rank and the last have all that the new planes at their ends are made of."""
    (low, high), *_, (start, stop) = spans(shard.edges)
    return _needed(before, mirrored) <= high - low and _needed(after, mirrored) <= stop - start


def _needed(width: int, mirrored: bool) -> int:
    """Planes that an end must have."""
    return 1 - width if width < 0 else width + 1 if mirrored and width else 1

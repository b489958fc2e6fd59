"""Interpolation by whole factors: nearest is local, linear needs a plane from each neighbour."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lampseg.parallel.spatial.collectives import planes_of
from lampseg.parallel.spatial.layout import Shard, layout_of
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.parallel.spatial.register import exact
from lampseg.parallel.spatial.window import spans

Function = Callable[..., Any]

_NAMES = ("input", "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor", "antialias")
_LINEAR = ("linear", "bilinear", "trilinear")


@dataclass(frozen=True)
class _Options:
    mode: str
    align_corners: bool | None
    rest: dict[str, Any]

    def run(self, func: Function, x: Tensor, size: list[int]) -> Tensor:
        out: Tensor = func(x, size=size, mode=self.mode, align_corners=self.align_corners)
        return out


@exact(F.interpolate)
def interpolate(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """nearest, linear, bilinear, trilinear; up by whole factors, and nearest also down."""
    given = {**dict(zip(_NAMES, args)), **kwargs}
    x, how = given["input"], given.get("mode", "nearest")
    if how not in (*_LINEAR, "nearest", "nearest-exact"):
        raise mode.refuse(func, f"mode {how}", remedy="use nearest or trilinear")
    if given.get("antialias"):
        raise mode.refuse(func, "antialias")
    size = _size(mode, func, x, given)
    options = _Options(how, given.get("align_corners"), {})
    layout = list(layout_of(x))
    for n, shard in enumerate(layout):
        before, after = x.shape[shard.dim], size[shard.dim - 2]
        if shard.dim < 2 or shard.merged:
            raise mode.refuse(func, "its input is cut along samples, channels or flattened voxels")
        if after == before:
            continue
        if after % before == 0:
            factor = after // before
            edges = tuple(edge * factor for edge in shard.edges)
            if how in _LINEAR:
                x = _linear(mode, func, x, shard, factor, options)
        elif before % after == 0 and how == "nearest" and all(edge % (before // after) == 0 for edge in shard.edges):
            edges = tuple(edge // (before // after) for edge in shard.edges)
        else:
            raise mode.refuse(
                func,
                f"from {before} to {after} planes is no whole factor",
                remedy="use volumes whose size is a multiple of the network's total stride",
            )
        layout[n] = Shard(shard.axis, shard.dim, edges)
    if list(x.shape[2:]) != size or x is given["input"]:
        x = options.run(func, x, size)
    return mode.cut_again(mode.marked(x, layout))


def _size(mode: SpatialParallel, func: Function, x: Tensor, given: dict[str, Any]) -> list[int]:
    """Of my slab of the output."""
    dims = x.dim() - 2
    size, scale = given.get("size"), given.get("scale_factor")
    if size is not None:
        return list(size) if isinstance(size, tuple | list | torch.Size) else [size] * dims
    factors: list[Any] = list(scale) if isinstance(scale, tuple | list) else [scale] * dims
    if any(planes * factor % 1 for planes, factor in zip(x.shape[2:], factors, strict=True)):
        raise mode.refuse(func, "by a factor that gives no whole number of planes", remedy="give size")
    return [int(planes * factor) for planes, factor in zip(x.shape[2:], factors, strict=True)]


def _linear(mode: SpatialParallel, func: Function, x: Tensor, shard: Shard, factor: int, options: _Options) -> Tensor:
    """Along one dimension, with one plane more from each side."""
    axis, dim, edges, total = mode.axes[shard.axis], shard.dim, shard.edges, shard.total
    needs = [(max(begin - 1, 0), min(end + 1, total)) for begin, end in spans(edges)]
    x = planes_of(x, axis, dim, edges, needs)
    low, high = needs[axis.rank]
    begin, end = edges[axis.rank], edges[axis.rank + 1]
    if not options.align_corners:
        size = list(x.shape[2:])
        size[dim - 2] *= factor
        return options.run(func, x, size).narrow(dim, (begin - low) * factor, (end - begin) * factor)
    # Between the corners: where an output lies in the input depends on the size of the whole.
    outputs = torch.arange(begin * factor, end * factor, device=x.device, dtype=torch.float64)
    source = outputs * ((total - 1) / (total * factor - 1))
    first = source.floor().clamp_(max=max(total - 2, 0))
    weight = (source - first).to(x.dtype).view([-1 if other == dim else 1 for other in range(x.dim())])
    index = first.long() - low
    upper = (index + 1).clamp_(max=high - low - 1)
    return torch.lerp(x.index_select(dim, index), x.index_select(dim, upper), weight)

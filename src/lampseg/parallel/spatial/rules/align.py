"""Alignment: operands of one function that broadcast are brought to one layout."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from lampseg.parallel.spatial.layout import Layout, Shard, is_constant, layout_of
from lampseg.parallel.spatial.mode import SpatialParallel


def common_layout(mode: SpatialParallel, func: Callable[..., Any], tensors: Sequence[Tensor], *, rank: int) -> Layout:
    """The layout of a result with `rank` dimensions; where slabs lie between different edges, those of the first."""
    found: dict[int, Shard] = {}
    for tensor in tensors:
        for shard in layout_of(tensor):
            there = shard.at(shard.dim + rank - tensor.dim())
            known = found.setdefault(there.axis, there)
            if replace(there, edges=known.edges) != known or there.total != known.total:
                raise mode.refuse(
                    func,
                    f"its operands are cut along different dimensions, or are slabs of wholes of different size "
                    f"(dimension {known.dim} of {known.total} planes, dimension {there.dim} of {there.total})",
                )
    return tuple(found[axis] for axis in sorted(found))


def fit(
    mode: SpatialParallel,
    func: Callable[..., Any],
    tensor: Tensor,
    layout: Layout,
    *,
    rank: int,
    skip: int | None = None,
) -> Tensor:
    """One operand as the result's layout needs it; `skip`: a dimension in which operands may differ."""
    for shard in layout:
        dim = shard.dim - (rank - tensor.dim())
        if dim < 0 or dim == skip:
            continue
        now = next((other for other in layout_of(tensor) if other.axis == shard.axis), None)
        size = tensor.shape[dim]
        if now is None and (size == 1 or (is_constant(tensor) and size == mode.local(shard))):
            continue
        if now is None and (shard.merged or size != shard.total):
            why = f"it joins a slab with a tensor of {size} planes that is none (the whole has {shard.total})"
            if size == tensor.shape[dim] and size == mode.local(shard) and not shard.merged:
                why = "it joins a slab with a tensor that was made in the shape of the slab, but is none"
            raise mode.refuse(func, why)
        tensor = mode.fitted(tensor, shard.at(dim))
    return tensor


def fit_all(mode: SpatialParallel, func: Callable[..., Any], tensors: Sequence[Tensor]) -> tuple[list[Tensor], Layout]:
    """All operands of a function that broadcasts, and the layout of its result."""
    rank = max(tensor.dim() for tensor in tensors)
    layout = common_layout(mode, func, tensors, rank=rank)
    return [fit(mode, func, tensor, layout, rank=rank) for tensor in tensors], layout

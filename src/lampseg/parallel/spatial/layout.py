"""The layout: which dimensions of a tensor are cut into slabs, and where the slabs' edges lie."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor

_SLAB, _CONSTANT = "_lampseg_slab", "_lampseg_constant"


@dataclass(frozen=True)
class Shard:
    """How one axis of the mesh cuts a tensor."""

    axis: int
    """Of the mesh, as a number."""
    dim: int
    """Of the tensor."""
    edges: tuple[int, ...]
    """Rank r of the axis holds the planes edges[r] to edges[r + 1]; the last one is the size of the whole."""
    merged: tuple[int, ...] = ()
    """Where `dim` was made of several dimensions (a volume flattened to voxels): their sizes in the whole."""
    place: int = 0
    """Which of the merged dimensions is cut."""

    @property
    def total(self) -> int:
        """Planes of the whole."""
        return self.edges[-1]

    def at(self, dim: int) -> "Shard":
        """The same cut, at another place of the tensor's shape."""
        return self if dim == self.dim else replace(self, dim=dim)


Layout = tuple[Shard, ...]
"""In the order of the axes. Empty: the tensor is a replica, the same on every rank."""


def layout_of(tensor: Tensor) -> Layout:
    """The layout that a tensor was marked with."""
    return cast(Layout, getattr(tensor, _SLAB, ()))


def mark(tensor: Tensor, layout: Iterable[Shard]) -> Tensor:
    """The tensor, with this layout from now on."""
    layout = tuple(sorted(layout, key=lambda shard: shard.axis))
    if layout:
        setattr(tensor, _SLAB, layout)
    elif hasattr(tensor, _SLAB):
        delattr(tensor, _SLAB)
    return tensor


def mark_constant(tensor: Tensor) -> Tensor:
    """Notes that all of a tensor's elements are one number, so that it may serve as a slab of any whole."""
    setattr(tensor, _CONSTANT, True)
    return tensor


def is_constant(tensor: Tensor) -> bool:
    """Whether it was marked so, and not written since."""
    return bool(getattr(tensor, _CONSTANT, False))


def unmark_constant(tensor: Tensor) -> None:
    """It is about to be written."""
    if hasattr(tensor, _CONSTANT):
        delattr(tensor, _CONSTANT)


def spread_edges(total: int, ranks: int, *, unit: int = 1) -> tuple[int, ...]:
    """Edges of slabs as equal as possible.

    They are multiples of `unit`, the network's total stride, so that they stay whole numbers on every level. If there
    are fewer units than ranks, of half the unit, and so on: below that level a rank would have nothing, and the level
    is computed on all of them.
    """
    while unit > 1 and (total % unit or total // unit < ranks):
        unit = unit // 2 if unit % 2 == 0 else 1
    each, more = divmod(total // unit, ranks)
    edges = [0]
    for rank in range(ranks):
        edges.append(edges[-1] + unit * (each + (rank < more)))
    edges[-1] = total
    return tuple(edges)

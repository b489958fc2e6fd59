"""Cutting: which part of a micro-batch each rank has; parts handed out from the first rank, and put together there."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lampseg.errors import UserError
from lampseg.parallel.mesh import Mesh
from lampseg.parallel.spatial.layout import Layout, layout_of
from lampseg.parallel.spatial.mode import SpatialParallel

Shape = tuple[int, ...]
AXES = ("x", "y", "z")


class Cutting:
    """How volumes are cut between the ranks of one mesh.

    Args:
        mesh: those who share a volume.
        spatial: their slab mode.
    """

    def __init__(self, spatial: SpatialParallel, *, mesh: Mesh) -> None:
        self.spatial, self.mesh = spatial, mesh

    def region(self, shape: Shape) -> tuple[slice, ...]:
        """My part of a volume of which a micro-batch (N, C, *spatial) consists: what has to be loaded."""
        parts = [slice(0, size) for size in shape[2:]]
        for shard in self.spatial.layout(shape):
            rank = self.spatial.axes[shard.axis].rank
            parts[shard.dim - 2] = slice(shard.edges[rank], shard.edges[rank + 1])
        return tuple(parts)

    def placed(self, mine: Tensor, shape: Shape) -> Tensor:
        """Marks my part of an image or of labels as a slab of a micro-batch of this shape."""
        return self.spatial.slab(mine, self.layout(shape, mine.dim()))

    def layout(self, shape: Shape, dims: int) -> Layout:
        """Of a tensor with so many dimensions, the last of which are the spatial ones."""
        shift = dims - len(shape)
        return tuple(shard.at(shard.dim + shift) for shard in self.spatial.layout(shape))

    def scatter(self, whole: Tensor | None, shape: Shape, *, dtype: torch.dtype) -> Tensor:
        """My part of an input that the first rank has; nobody else holds more than that.

        Args:
            whole: (N, C, *spatial) on the CPU, on the first rank; elsewhere None.
        """
        mesh = self.mesh
        regions: list[Any] = mesh.gather(self.region(shape))
        if mesh.device == 0:
            assert whole is not None
            for device in range(1, mesh.devices):
                part = whole[(slice(None), slice(None), *regions[device])].to(dtype).contiguous()
                dist.send(part, mesh.rank_of(device), group=mesh.world.control)
            mine = whole[(slice(None), slice(None), *regions[0])].to(dtype)
        else:
            sizes = [part.stop - part.start for part in self.region(shape)]
            mine = torch.empty((*shape[:2], *sizes), dtype=dtype)
            dist.recv(mine, mesh.rank_of(0), group=mesh.world.control)
        return mine.to(mesh.world.device)

    def assembled(self, mine: Tensor, shape: Shape) -> Tensor | None:
        """A whole tensor (X, Y, Z) of everyone's part on the CPU of the first rank; elsewhere None."""
        mesh = self.mesh
        regions: list[Any] = mesh.gather(self.region(shape))
        if mesh.device > 0:
            dist.send(mine.contiguous(), mesh.rank_of(0), group=mesh.world.control)
            return None
        whole = torch.empty(tuple(shape[2:]), dtype=mine.dtype)
        whole[regions[0]] = mine
        for device in range(1, mesh.devices):
            part = torch.empty([each.stop - each.start for each in regions[device]], dtype=mine.dtype)
            dist.recv(part, mesh.rank_of(device), group=mesh.world.control)
            whole[regions[device]] = part
        return whole

    def checked(self, output: Tensor) -> Tensor:
        """The network's output, if it is a slab along every axis.

        Raises:
            UserError: it is not: other ranks would have the same part.
        """
        if {shard.axis for shard in layout_of(output)} != {axis.number for axis in self.spatial.axes}:
            raise UserError("the network's output is no slab: its last level has fewer planes than ranks")
        return output

    def labels(self, mine: Tensor, shape: Shape) -> Tensor | None:
        """Class indices (X, Y, Z) of a volume on the CPU of the first rank, from everyone's logits (1, C, *part)."""
        classes = mine[0].argmax(0).to(torch.uint8 if mine.shape[1] <= 256 else torch.int16).cpu()
        whole = self.assembled(classes, shape)
        return None if whole is None else whole.long()


def spatial_of(
    mesh: Mesh, slabs: Sequence[int], *, stride: Sequence[int], overlapped: bool | None = None
) -> SpatialParallel:
    """The slab mode of those who share my place; called on every rank alike.

    Args:
        slabs: ranks along each spatial dimension.
        stride: the network's total down-sampling along each.
    """
    table = torch.arange(mesh.world.size).view(-1, *slabs)
    groups: dict[str, dist.ProcessGroup] = {}
    for n, count in enumerate(slabs):
        if count == 1:
            continue
        for line in table.movedim(n + 1, -1).reshape(-1, count).tolist():  # every rank makes all of them
            group = dist.new_group(line, timeout=mesh.world.timeout)
            if mesh.world.rank in line:
                groups[AXES[n]] = group
    dims = {AXES[n]: n + 2 for n, count in enumerate(slabs) if count > 1}
    return SpatialParallel.over(groups, dims, stride=stride, overlapped=overlapped)

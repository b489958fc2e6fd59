"""Values of a volume on boxes of a grid: read across boxes, and passed between the ranks that hold them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lampseg.parallel.mesh import Mesh

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Tile:
    """Values (C, X, Y, Z) on a box."""

    values: Tensor
    box: Box

    def cropped(self, shape: Sequence[int]) -> "Tile":
        """Without what lies beyond a volume of this shape."""
        box = overlap(self.box, whole(shape))
        return Tile(self.values[(slice(None), *within(box, self.box))], box)


def whole(shape: Sequence[int]) -> Box:
    """The box of a whole volume (X, Y, Z)."""
    x, y, z = shape
    return (slice(0, x), slice(0, y), slice(0, z))


def sizes(box: Box) -> tuple[int, int, int]:
    x, y, z = (part.stop - part.start for part in box)
    return (x, y, z)


def overlap(first: Box, second: Box) -> Box:
    """What two boxes have in common; of size 0 along some axis if that is nothing."""
    x, y, z = (_common(a, b) for a, b in zip(first, second))
    return (x, y, z)


def _common(a: slice, b: slice) -> slice:
    start = max(a.start, b.start)
    return slice(start, max(start, min(a.stop, b.stop)))


def within(box: Box, outer: Box) -> Box:
    """A box in the coordinates of another that holds it."""
    x, y, z = (slice(part.start - o.start, part.stop - o.start) for part, o in zip(box, outer))
    return (x, y, z)


def read(tiles: Sequence[Tile], box: Box) -> Tensor:
    """The values on a box that the tiles cover together: a view if one tile does, else a copy."""
    for tile in tiles:
        if overlap(tile.box, box) == box:
            return tile.values[(slice(None), *within(box, tile.box))]
    out = tiles[0].values.new_empty((len(tiles[0].values), *sizes(box)))
    for tile in tiles:
        common = overlap(tile.box, box)
        out[(slice(None), *within(common, box))] = tile.values[(slice(None), *within(common, tile.box))]
    return out


def exchange(mine: Tile, want: Box | None, *, mesh: Mesh, device: torch.device) -> list[Tile]:
    """Gives the ranks of my replica what they want of my tile, and returns what I want: a tile from each that has some.

    Called on every rank of the replica alike. My own part is not copied. Messages go through the CPU.
    """
    told: list[Any] = mesh.gather((mine.box, want))
    pending: list[tuple[dist.Work | None, Tensor]] = []
    for other, (_, wanted) in enumerate(told):
        if other == mesh.device or wanted is None or 0 in sizes(part := overlap(mine.box, wanted)):
            continue
        sent = mine.values[(slice(None), *within(part, mine.box))].cpu().contiguous()
        # As bytes: gloo does not know every type.
        work = dist.isend(sent.view(torch.uint8), mesh.rank_of(other), group=mesh.world.control)
        pending.append((work, sent))
    tiles = []
    for other, (box, _) in enumerate(told):
        if want is None or 0 in sizes(part := overlap(box, want)):
            continue
        if other == mesh.device:
            tiles.append(Tile(mine.values[(slice(None), *within(part, mine.box))], part))
            continue
        values = torch.empty((len(mine.values), *sizes(part)), dtype=mine.values.dtype)
        dist.recv(values.view(torch.uint8), mesh.rank_of(other), group=mesh.world.control)
        tiles.append(Tile(values.to(device), part))
    for work, _ in pending:
        if work is not None:
            work.wait()
    return tiles

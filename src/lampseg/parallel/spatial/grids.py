"""Grids: the ways to cut a volume between ranks, and the plans that they make."""

import itertools
import math
from collections.abc import Iterator, Sequence

from lampseg.errors import UserError
from lampseg.parallel.spatial.forecast import Rehearsed, slab_plan
from lampseg.partition.costed import CostedNetwork, MicroBatchLoss
from lampseg.partition.plan import Choices, Plan


def grids(ranks: int, *, size: Sequence[int], stride: Sequence[int]) -> list[tuple[int, ...]]:
    """Ways to cut a volume between so many ranks, those with the smallest surfaces first.

    Each slab has at least one unit of the stride, so that every level of the network can be cut.
    """
    counts = [range(1, min(ranks, planes // step) + 1) for planes, step in zip(size, stride)]
    found = [grid for grid in itertools.product(*counts) if math.prod(grid) == ranks]
    volume = math.prod(size)

    def surface(grid: tuple[int, ...]) -> float:
        return sum((count - 1) * volume / planes for count, planes in zip(grid, size))

    return sorted(found, key=lambda grid: (surface(grid), *(-count for count in grid)))


def choices_for(model: CostedNetwork, grid: Sequence[int], *, micro_batches: int, replicas: int) -> Choices:
    """Choices that cut volumes by a grid."""
    if replicas > micro_batches:
        raise UserError(f"{replicas} replicas can't share {micro_batches} micro-batch(es)")
    return Choices(
        devices=1,
        replicas=replicas,
        micro_batches=micro_batches,
        schedule="1f1b",
        cuts=(),
        recompute=("none",),
        slabs=tuple(grid),
    )


def slab_plans(
    model: CostedNetwork,
    *,
    ranks: int,
    replicas: int,
    micro_batches: int,
    stride: Sequence[int],
    loss: MicroBatchLoss | None = None,
    memory: Sequence[float] | None = None,
    most: int = 2,
    known: Rehearsed | None = None,
) -> Iterator[Plan]:
    """Rough plans that cut volumes between so many ranks: by the grids with the smallest surfaces.

    Args:
        known: slabs that were rehearsed before; those rehearsed now are added.

    Raises:
        UserError: no grid leaves every rank a slab.
        NotExactError: the network does what is not known to be exact on slabs.
    """
    size = model.graph.input.shape[2:]
    found = grids(ranks, size=size, stride=stride)
    if not found:
        raise UserError(
            f"{model.name} on {'x'.join(map(str, size))} can't be cut into {ranks} slabs: each needs at least the "
            f"network's total stride of {list(stride)} planes; use fewer devices for each volume, or mode: pipeline"
        )
    for grid in found[:most]:
        choices = choices_for(model, grid, micro_batches=micro_batches, replicas=replicas)
        yield slab_plan(model, choices, stride=stride, loss=loss, memory=memory, roughly=True, known=known)

"""Scores of whole volumes on the network's grid: logits, or mean probabilities over flips, where ranks have them."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lampseg.inference.mirror import Mirror
from lampseg.inference.model import Segmenter, Shape
from lampseg.inference.tiles import Tile, exchange, whole, within
from lampseg.parallel.pipeline import PipelineRunner
from lampseg.parallel.spatial.runner import SlabRunner
from lampseg.training.supervision import logits_of

Flip = tuple[int, ...]


def whole_scores(
    model: Segmenter, shapes: Sequence[Shape], *, load: Callable[[int, Flip], Tensor], mirror: Mirror
) -> Iterator[Tile | None]:
    """The scores of each volume, after one pass of it, or one for each flip; None where there are none.

    In a pipeline one rank of the replica has them whole; with slabs each has those of its part. All passes of all
    volumes are micro-batches of one timetable.

    Args:
        shapes: (1, C, X, Y, Z), multiples of the network's stride.
        load: gives my part of a volume, flipped.
        mirror: means are added up in place, so that beside them one pass's probabilities exist.
    """
    flips = mirror.flips
    passes = [shape for shape in shapes for _ in flips]
    found = model.runner.parts(
        passes, load=lambda m: load(m // len(flips), flips[m % len(flips)]), logits=lambda output: logits_of(output)[0]
    )
    for shape in shapes:
        total: Tile | None = None
        for flip in flips:
            part = next(found)
            if part is None:
                continue
            if not mirror.averages:
                total = Tile(part[0], _mine(model, shape))
                continue
            scores = probabilities(part[0])
            del part
            total = _add(total, scores, model=model, shape=shape, flip=flip, mirror=mirror)
            del scores
        if total is not None and mirror.averages:
            total.values.div_(len(flips))
        yield total
        del total
    rest = list(found)  # a pipeline waits for its last messages
    assert not rest


def probabilities(logits: Tensor) -> Tensor:
    """Of logits (C, ...): float32, or float64 as they are."""
    return torch.softmax(logits, 0, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)


def _mine(model: Segmenter, shape: Shape) -> tuple[slice, slice, slice]:
    x, y, z = model.runner.region(shape)
    return (x, y, z)


def _add(total: Tile | None, scores: Tensor, *, model: Segmenter, shape: Shape, flip: Flip, mirror: Mirror) -> Tile:
    """Adds a flipped volume's scores to the sum; parts that belong to other slabs go there."""
    box = _mine(model, shape)
    scores = mirror.back(scores, flip)
    runner = model.runner
    tiles = [Tile(scores, box)]
    slabs = runner.choices.slabs if isinstance(runner, SlabRunner | PipelineRunner) else (1, 1, 1)
    if any(slabs[axis] > 1 for axis in flip):
        sides = whole(shape[2:])
        there = [
            slice(side.stop - part.stop, side.stop - part.start) if axis in flip else part
            for axis, (part, side) in enumerate(zip(box, sides))
        ]
        mine = Tile(scores, (there[0], there[1], there[2]))
        tiles = exchange(mine, box, mesh=model.mesh.together, device=scores.device)
    if total is None:
        assert len(tiles) == 1, "the first pass is not flipped"
        return tiles[0]
    for tile in tiles:
        total.values[(slice(None), *within(tile.box, box))] += tile.values
    return total

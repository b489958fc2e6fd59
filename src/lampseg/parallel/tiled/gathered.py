"""Gradients of a unit's inputs, gathered tile by tile."""

import torch
from torch import Tensor

from lampseg.parallel.tiled.planes import TILED, Reach, joined, planes_of, tiles
from lampseg.parallel.tiled.steps import Backward, Constants


class Gathered:
    """Gradients of the inputs, to which neighbouring tiles add where their planes overlap."""

    def __init__(self, inputs: list[Tensor], wanted: tuple[bool, ...], *, everything: bool) -> None:
        self._wanted = wanted
        self._sizes = [x.shape[1] for x in inputs]
        self._planes = inputs[0].shape[TILED]
        self._grads = [torch.empty_like(x) if want or everything else None for x, want in zip(inputs, wanted)]
        self._done = 0

    def add(self, slab: Tensor, begin: int, end: int, *, reach: Reach) -> None:
        """Adds those of the planes that the output's planes from `begin` to `end` read."""
        low, high, _, _ = reach.inputs(begin, end, self._planes)
        old = min(max(self._done - low, 0), high - low)
        for grad, part in zip(self._grads, slab.split(self._sizes, 1), strict=True):
            if grad is None:
                continue
            planes_of(grad, self._done, low).zero_() if low > self._done else None
            planes_of(grad, low, low + old).add_(part.narrow(TILED, 0, old)) if old else None
            planes_of(grad, low + old, high).copy_(part.narrow(TILED, old, high - low - old))
        self._done = max(self._done, high)

    def finish(self) -> None:
        """Planes that no output read have no gradient."""
        for grad in self._grads:
            if grad is not None and self._done < self._planes:
                planes_of(grad, self._done, self._planes).zero_()

    def through(self, before: Constants, inputs: list[Tensor], *, thickness: int) -> tuple[Tensor | None, ...]:
        """Turns them from those of the step's result into those of its input; gives those of its parameters."""
        grads = [grad for grad in self._grads if grad is not None]
        back = Backward(before)
        if before.step.live:
            for begin, end in tiles(self._planes, thickness):
                back.add(joined(grads, begin, end), joined(inputs, begin, end))
        for begin, end in tiles(self._planes, thickness):
            found = back.of_input(joined(grads, begin, end), joined(inputs, begin, end))
            for grad, part in zip(grads, found.split(self._sizes, 1), strict=True):
                planes_of(grad, begin, end).copy_(part)
            del found
        return back.of_parameters()

    def wanted(self) -> list[Tensor | None]:
        return [grad if want else None for grad, want in zip(self._grads, self._wanted, strict=True)]

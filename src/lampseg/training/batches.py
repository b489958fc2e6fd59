"""A mini-batch as micro-batches: which draws go together, and their tensors, loaded where they are needed."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lampseg.data import Draw, Sampler


def cut(draws: Sequence[Draw], count: int) -> tuple[tuple[Draw, ...], ...]:
    """Cuts a mini-batch into `count` micro-batches whose sizes differ by one at most."""
    edges = np.linspace(0, len(draws), count + 1).round().astype(int)
    return tuple(tuple(draws[a:b]) for a, b in itertools.pairwise(edges))


@dataclass(frozen=True)
class MicroBatch:
    """Some draws of one mini-batch; the tensors are read from disk when asked for."""

    sampler: Sampler
    draws: tuple[Draw, ...]
    dtype: torch.dtype
    device: torch.device
    region: Callable[[tuple[int, ...]], tuple[slice, ...]] | None = None
    """Gives the part of a shape that this process works on; None: all."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole input, (N, C, X, Y, Z)."""
        return (len(self.draws), self.sampler.channels, *self.draws[0].size)

    @property
    def parts(self) -> list[Draw]:
        """What is read: this process's part of each box."""
        if self.region is None:
            return list(self.draws)
        region = self.region(self.shape)
        return [draw.part(region) for draw in self.draws]

    def image(self) -> Tensor:
        """My part of (N, C, X, Y, Z)."""
        array = np.stack([self.sampler.image(draw) for draw in self.parts])
        return torch.from_numpy(array).to(self.device, self.dtype)

    def target(self) -> Tensor:
        """My part of (N, X, Y, Z), int64."""
        return torch.from_numpy(np.stack([self.sampler.label(draw) for draw in self.parts])).to(self.device)

    def annotated(self) -> Tensor:
        """(N, C), bool."""
        return torch.from_numpy(np.stack([self.sampler.annotated(draw) for draw in self.draws])).to(self.device)

    def valid(self) -> Tensor | None:
        """My part of (N, X, Y, Z), bool; None if nothing is padding, in my part or another's."""
        if not any(self.sampler.padded(draw) for draw in self.draws):
            return None
        return torch.from_numpy(np.stack([self.sampler.valid(draw) for draw in self.parts])).to(self.device)

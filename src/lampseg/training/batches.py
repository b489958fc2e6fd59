"""A mini-batch as micro-batches: which draws go together, and their tensors, loaded where they are needed."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
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
    used: set[str] = field(default_factory=set, compare=False)
    """What was asked for so far: image, label, valid."""
    _ahead: dict[str, Future[npt.NDArray[Any]]] = field(default_factory=dict, compare=False, repr=False)

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
        return self._tensor("image").to(self.device, self.dtype)

    def target(self) -> Tensor:
        """My part of (N, X, Y, Z), int64."""
        return self._tensor("label").to(self.device)

    def annotated(self) -> Tensor:
        """(N, C), bool."""
        return torch.from_numpy(np.stack([self.sampler.annotated(draw) for draw in self.draws])).to(self.device)

    def valid(self) -> Tensor | None:
        """My part of (N, X, Y, Z), bool; None if nothing is padding, in my part or another's."""
        if not any(self.sampler.padded(draw) for draw in self.draws):
            return None
        return self._tensor("valid").to(self.device)

    def read_ahead(self, kind: str, pool: Executor) -> None:
        """Has image, label or valid read by the pool, for the first who asks for it."""
        if kind != "valid" or any(self.sampler.padded(draw) for draw in self.draws):
            self._ahead[kind] = pool.submit(self._read, kind)

    def _tensor(self, kind: str) -> Tensor:
        self.used.add(kind)
        begun = self._ahead.pop(kind, None)
        return torch.from_numpy(self._read(kind) if begun is None else begun.result())

    def _read(self, kind: str) -> npt.NDArray[Any]:
        read: dict[str, Callable[[Draw], npt.NDArray[Any]]] = {
            "image": self.sampler.image,
            "label": self.sampler.label,
            "valid": self.sampler.valid,
        }
        return np.stack([read[kind](draw) for draw in self.parts])

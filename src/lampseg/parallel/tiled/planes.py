"""Planes: which input planes a tile of a convolution's output reads, and how thick tiles are."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILED = 2
"""The dimension that is cut: the first spatial one."""


@dataclass(frozen=True)
class Reach:
    """A convolution along the dimension that is cut."""

    kernel: int
    stride: int
    padding: int
    dilation: int

    def outputs(self, planes: int) -> int:
        """Of so many input planes."""
        return (planes + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) // self.stride + 1

    def inputs(self, begin: int, end: int, planes: int) -> tuple[int, int, int, int]:
        """For the output planes from `begin` to `end`: the input planes (first, end), and zeros before and after."""
        first = begin * self.stride - self.padding
        last = (end - 1) * self.stride - self.padding + self.dilation * (self.kernel - 1) + 1
        low, high = max(first, 0), min(last, planes)
        return low, high, low - first, last - high


def tiles(planes: int, thickness: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of each tile; the last may be thinner."""
    for begin in range(0, planes, thickness):
        yield begin, min(begin + thickness, planes)


def thickness_of(tile: int, *, whole: Sequence[int], size: Sequence[int]) -> int:
    """The planes of a tile of a tensor, so that it has as many voxels as one of the network's input.

    Args:
        tile: planes of a tile of the input.
        whole: spatial size of the network's input.
        size: spatial size of the tensor.
    """
    return max(1, tile * math.prod(whole[1:]) // max(1, math.prod(size[1:])))


def planes_of(tensor: Tensor, begin: int, end: int) -> Tensor:
    """Some planes, a view."""
    return tensor.narrow(TILED, begin, end - begin)


def joined(inputs: Sequence[Tensor], begin: int, end: int) -> Tensor:
    """Planes of the concatenation along the channels; of a single tensor, a view."""
    parts = [planes_of(x, begin, end) for x in inputs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

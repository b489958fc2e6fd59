"""Folding: a thin tile's convolution as that of two halves, where a CPU would take its slow path for one tile.

PyTorch decides by the batch and by channels x planes x rows (`hardware.fallback`), so that a tile of some planes meets
the slow path where the whole volume does not. As a batch of two halves, along a dimension that is not cut into tiles,
it does not: several times faster, and without the slow path's unfolded input. The halves share the rows that both read.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lampseg.hardware.fallback import falls_back
from lampseg.parallel.spatial.convolution import Arguments

_DIM = 3
"""The dimension that is halved: the second spatial one."""


@dataclass(frozen=True)
class Folded:
    """A convolution of one sample, (1, C, X, Y, ...), by halves; with the methods of `Arguments`."""

    args: Arguments
    kernel: int
    """Along the dimension that is halved; so is `rows`."""
    rows: int
    """Of the input."""

    @cached_property
    def outputs(self) -> int:
        """Rows of the output; of two halves of `half` rows the last may be one too many."""
        return (self.rows + 2 * self._padding - self._reach - 1) // self._stride + 1

    @property
    def half(self) -> int:
        return -(-self.outputs // 2)

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = self._within.run(self._input(x), weight, bias)
        return torch.cat([out[:1], out[1:].narrow(_DIM, 0, self.outputs - self.half)], _DIM)

    def gradients(
        self, grad: Tensor, x: Tensor, weight: Tensor, bias: list[int] | None, wanted: list[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of input, weight and bias."""
        found, *others = self._within.gradients(self._output(grad), self._input(x), weight, bias, wanted)
        return None if found is None else self._joined(found, x), others[0], others[1]

    @property
    def _padding(self) -> int:
        return self.args.padding[_DIM - 2]

    @property
    def _stride(self) -> int:
        return self.args.stride[_DIM - 2]

    @property
    def _reach(self) -> int:
        return self.args.dilation[_DIM - 2] * (self.kernel - 1)

    @cached_property
    def _within(self) -> Arguments:
        """Of the halves, to which the zeros around the volume have been added."""
        padding = list(self.args.padding)
        padding[_DIM - 2] = 0
        return replace(self.args, padding=tuple(padding))

    @cached_property
    def _read(self) -> int:
        """Input rows that a half reads."""
        return (self.half - 1) * self._stride + self._reach + 1

    def _span(self, n: int) -> tuple[int, int, int]:
        """Of half n: the first and the end of the input's rows that it reads, and where the first lies in the half."""
        first = n * self.half * self._stride - self._padding
        low, high = max(first, 0), min(first + self._read, self.rows)
        return low, max(low, high), low - first

    def _input(self, x: Tensor) -> Tensor:
        shape = [2, *x.shape[1:]]
        shape[_DIM] = self._read
        halves = x.new_empty(shape)
        for n in range(2):
            low, high, at = self._span(n)
            half = halves[n : n + 1]
            half.narrow(_DIM, at, high - low).copy_(x.narrow(_DIM, low, high - low))
            for begin, end in ((0, at), (at + high - low, self._read)):
                if begin < end:
                    half.narrow(_DIM, begin, end - begin).zero_()
        return halves

    def _output(self, grad: Tensor) -> Tensor:
        """Gradients of the halves' outputs; nobody reads the row that is too many."""
        rest = self.outputs - self.half
        if rest == self.half:
            return torch.cat(grad.split(self.half, _DIM))
        shape = [2, *grad.shape[1:]]
        shape[_DIM] = self.half
        halves = grad.new_empty(shape)
        halves[:1].copy_(grad.narrow(_DIM, 0, self.half))
        halves[1:].narrow(_DIM, 0, rest).copy_(grad.narrow(_DIM, self.half, rest))
        halves[1:].narrow(_DIM, rest, 1).zero_()
        return halves

    def _joined(self, halves: Tensor, x: Tensor) -> Tensor:
        """The gradient of the input, to some rows of which both halves add."""
        found = torch.empty_like(x, dtype=halves.dtype, memory_format=torch.contiguous_format)
        done = 0
        for n in range(2):
            low, high, at = self._span(n)
            both = max(0, min(done, high) - low)
            if low > done:
                found.narrow(_DIM, done, low - done).zero_()
            if both:
                found.narrow(_DIM, low, both).add_(halves[n : n + 1].narrow(_DIM, at, both))
            new = halves[n : n + 1].narrow(_DIM, at + both, high - low - both)
            found.narrow(_DIM, low + both, high - low - both).copy_(new)
            done = max(done, high)
        if done < self.rows:
            found.narrow(_DIM, done, self.rows - done).zero_()
        return found


def how_to(args: Arguments, x: Tensor, weight: Tensor) -> Arguments | Folded:
    """The faster way to convolve a tile: as it is, or by halves.

    One input channel is left as it is: the gradient of such an input is the slower for halves. So is a kernel of one
    voxel, for which the slow path is as fast.
    """
    if x.dim() <= _DIM or len(x) > 1 or weight.shape[1] < 2 or weight[0, 0].numel() == 1:
        return args
    folded = Folded(args, weight.shape[_DIM], x.shape[_DIM])
    if folded.outputs < 2 or not _falls_back(args, x, weight):
        return args
    return args if _falls_back(args, x.expand(2, *x.shape[1:]), weight) else folded


def _falls_back(args: Arguments, x: Tensor, weight: Tensor) -> bool:
    options = (args.stride, args.padding, args.dilation, args.transposed, args.extra, args.groups)
    return falls_back(x, weight, options=options)

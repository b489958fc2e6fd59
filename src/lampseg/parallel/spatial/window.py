"""Windows: which planes an operation with a kernel needs for its slab of the output, and where that slab lies."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from lampseg.parallel.spatial.exchange import Span


@dataclass(frozen=True)
class Window:
    """A kernel along one dimension.

    output o reads the inputs  o * stride - padding + dilation * (0, 1, ..., kernel - 1)
    """

    kernel: int
    stride: int
    padding: int
    dilation: int = 1

    @property
    def reach(self) -> int:
        """From the first to the last input that one output reads."""
        return self.dilation * (self.kernel - 1)

    def planes(self, total: int) -> int:
        """Of the output."""
        return max(0, (total + 2 * self.padding - self.reach - 1) // self.stride + 1)

    def edges(self, edges: Sequence[int]) -> tuple[int, ...]:
        """Of the output: an output belongs to the rank that owns the middle of its window."""
        total, middle = self.planes(edges[-1]), self.reach // 2 - self.padding
        inner = [min(max(-(-(edge - middle) // self.stride), 0), total) for edge in edges[1:-1]]
        return (0, *inner, total)

    def need(self, outputs: Span) -> Span:
        """The inputs that these outputs read, those in the padding too."""
        first = outputs[0] * self.stride - self.padding
        return first, (outputs[1] - 1) * self.stride - self.padding + self.reach + 1


@dataclass(frozen=True)
class Spread:
    """The kernel of a transposed convolution along one dimension.

    input i adds to the outputs  i * stride - padding + dilation * (0, 1, ..., kernel - 1)
    """

    kernel: int
    stride: int
    padding: int
    extra: int = 0
    """Outputs more at the end (`output_padding`)."""
    dilation: int = 1

    @property
    def reach(self) -> int:
        return self.dilation * (self.kernel - 1)

    def planes(self, total: int) -> int:
        """Of the output."""
        return (total - 1) * self.stride - 2 * self.padding + self.reach + 1 + self.extra

    def edges(self, edges: Sequence[int]) -> tuple[int, ...]:
        """Of the output: an output belongs to the rank that owns the input around whose kernel it lies."""
        total = self.planes(edges[-1])
        # Half of what the kernel is longer than the stride: 0 for kernels of 2 at stride 2, 1 for 3 or 4.
        middle = max(0, self.reach + 1 - self.stride + 1) // 2 - self.padding
        inner = [min(max(edge * self.stride + middle, 0), total) for edge in edges[1:-1]]
        return (0, *inner, total)

    def need(self, outputs: Span, total: int) -> Span:
        """The inputs that add to these outputs."""
        first = -(-(outputs[0] + self.padding - self.reach) // self.stride)
        last = (outputs[1] - 1 + self.padding) // self.stride + 1
        first = min(max(first, 0), total - 1)
        return first, max(min(last, total), first + 1)


def spans(edges: Sequence[int]) -> list[Span]:
    """What each rank owns."""
    return list(itertools.pairwise(edges))


def some_empty(edges: Sequence[int]) -> bool:
    """Whether a rank would own nothing."""
    return any(begin >= end for begin, end in spans(edges))

"""The ends of a slab: outputs of a convolution that read planes of others, and what those planes add to them.

A convolution is linear. My own planes with zeros around them give every output but what the halo adds:

    my planes       . [a b c d e f] .        kernel of 3 taps, u v w
    the halo      h [             ] i        adds u h to the first output, and w i to the last

So the halo meets only those taps of the kernel that read it, and nothing is computed twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, cat

from lampseg.parallel.spatial.exchange import Axis, Span, overlap
from lampseg.parallel.spatial.parts import parts_of


@dataclass(frozen=True)
class Halo:
    """The exchange along one axis before a convolution."""

    axis: Axis
    dim: int
    edges: tuple[int, ...]
    needs: tuple[Span, ...]


@dataclass(frozen=True)
class Side:
    """The beginning or the end."""

    first: int
    """Of the outputs that read planes of others."""
    count: int
    taps: Span
    """Of the kernel: those that read such planes."""
    span: Span
    """What these taps read, counted in the whole; my own planes count as zeros there."""

    def outputs(self, t: Tensor, dim: int) -> Tensor:
        """Those of a tensor like the result."""
        return t.narrow(dim, self.first, self.count)

    def kernel(self, weight: Tensor, dim: int) -> Tensor:
        """Its taps."""
        return weight.narrow(dim, self.taps[0], self.taps[1] - self.taps[0])

    def shared(self, first: int, planes: Tensor, dim: int) -> Span:
        """Which of fetched planes it reads, counted in the whole; the end is not above the begin if none."""
        return overlap((first, first + planes.shape[dim]), self.span)

    def thin(self, got: Sequence[tuple[int, Tensor]], dim: int) -> Tensor:
        """The planes of the span: the fetched ones, and zeros."""
        pieces: list[Tensor] = []
        at = self.span[0]
        some = got[0][1]

        def zeros(count: int) -> Tensor:
            return some.new_zeros([*some.shape[:dim], count, *some.shape[dim + 1 :]])

        for first, planes in got:
            low, high = self.shared(first, planes, dim)
            if low < high:
                if at < low:
                    pieces.append(zeros(low - at))
                pieces.append(planes.narrow(dim, low - first, high - low))
                at = high
        if at < self.span[1]:
            pieces.append(zeros(self.span[1] - at))
        return pieces[0] if len(pieces) == 1 else cat(pieces, dim)


@dataclass(frozen=True)
class Ends:
    """Both."""

    padding: int
    """Zeros at each end, with which my own planes alone give as many outputs."""
    sides: tuple[Side, ...]

    def kernels(self, weight: Tensor, dim: int) -> tuple[Tensor, ...]:
        """The taps of each side, contiguous."""
        return parts_of(weight, dim, [side.taps for side in self.sides])

    def outputs(self, t: Tensor, dim: int) -> tuple[Tensor, ...]:
        """The outputs of each side, contiguous."""
        return parts_of(t, dim, [(side.first, side.first + side.count) for side in self.sides])


def ends_of(halo: Halo, *, taps: int, stride: int, dilation: int) -> Ends | None:
    """None if the slab's own planes give no whole number of outputs, or if all outputs read planes of others.

    Args:
        taps: of the kernel along the halo's dimension.
    """
    begin, end = halo.edges[halo.axis.rank], halo.edges[halo.axis.rank + 1]
    low, high = halo.needs[halo.axis.rank]
    reach = dilation * (taps - 1)
    outputs = (high - low - reach - 1) // stride + 1
    # Output o reads low + o * stride and `reach` further.
    pad = begin - low
    early = max(0, -(-pad // stride)) if begin > 0 else 0
    late = sum(low + o * stride + reach >= end for o in range(outputs)) if end < halo.edges[-1] else 0
    if pad < 0 or (end - begin + 2 * pad - reach - 1) // stride + 1 != outputs or early + late >= outputs:
        return None
    sides = []
    if early:  # the first output reads most of what is before my planes
        used = min(taps, -(-pad // dilation))
        sides.append(_side(0, early, (0, used), low, stride, dilation))
    if late:  # the last one most of what is behind them
        unused = max(0, -(-(end - low - (outputs - 1) * stride) // dilation))
        sides.append(_side(outputs - late, late, (unused, taps), low, stride, dilation))
    return Ends(pad, tuple(sides))


def _side(first: int, count: int, taps: Span, low: int, stride: int, dilation: int) -> Side:
    begin = low + first * stride + taps[0] * dilation
    return Side(first, count, taps, (begin, begin + (count - 1) * stride + (taps[1] - taps[0] - 1) * dilation + 1))

"""Convolutions on slabs: the halo travels while the interior is computed; the slab and thin halos are what is kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lampseg.parallel.spatial.exchange import Axis, Span, assemble, disassemble, fetch, send_home, send_parts_home

_aten = torch.ops.aten


@dataclass(frozen=True)
class Halo:
    """The exchange along one axis before a convolution."""

    axis: Axis
    dim: int
    edges: tuple[int, ...]
    needs: tuple[Span, ...]


@dataclass(frozen=True)
class Arguments:
    """Of `aten.convolution`; the padding of a dimension with a halo is in the halo."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    extra: tuple[int, ...]
    groups: int

    def run(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out: Tensor = _aten.convolution(x, weight, bias, *self._list())
        return out

    def gradients(
        self, grad: Tensor, x: Tensor, weight: Tensor, bias: list[int] | None, wanted: list[bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of input, weight and bias."""
        out: Any = _aten.convolution_backward(grad, x, weight, bias, *self._list(), wanted)
        return out[0], out[1], out[2]

    def _list(self) -> list[Any]:
        return [
            list(self.stride),
            list(self.padding),
            list(self.dilation),
            self.transposed,
            list(self.extra),
            self.groups,
        ]


class _Convolution(Function):
    """Exchanges along one axis after the other, so that the corners come with the later ones."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, halos: Any, args: Any, overlapped: bool
    ) -> Tensor:
        padded, kept = x, []
        for halo in halos[:-1]:
            got = fetch(padded, halo.axis, halo.dim, halo.edges, halo.needs).wait()
            padded = assemble(padded, halo.axis, halo.dim, halo.edges, halo.needs[halo.axis.rank], got)
            kept.append(got)
        last = halos[-1]
        fetching = fetch(padded, last.axis, last.dim, last.edges, last.needs)
        out = _interior_first(padded, weight, bias, last, args, fetching) if overlapped else None
        got = fetching.wait()
        kept.append(got)
        if out is None:
            full = assemble(padded, last.axis, last.dim, last.edges, last.needs[last.axis.rank], got)
            out = args.run(full, weight, bias)
        ctx.halos, ctx.args, ctx.overlapped = halos, args, overlapped
        ctx.bias = None if bias is None else list(bias.shape)
        ctx.firsts = [[first for first, _ in got] for got in kept]
        ctx.save_for_backward(x, weight, *(planes for got in kept for _, planes in got))
        result: Tensor = out
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, *planes = ctx.saved_tensors  # with a checkpoint, this runs the forward again: under the mode
        with torch._C.DisableTorchFunction():
            (grad,) = grads
            rest = iter(planes)
            fetched = [[(first, next(rest)) for first in firsts] for firsts in ctx.firsts]
            for halo, got in zip(ctx.halos[:-1], fetched[:-1], strict=True):
                x = assemble(x, halo.axis, halo.dim, halo.edges, halo.needs[halo.axis.rank], got)
            to_x, to_weight, to_bias = ctx.needs_input_grad[:3]
            to_bias = to_bias and ctx.bias is not None
            halo, got = ctx.halos[-1], fetched[-1]
            ends = _ends(x, weight, halo, ctx.args) if ctx.overlapped else None
            if ends is not None:
                wanted = [to_x, to_weight, to_bias]
                grad_x, grad_w, grad_b = _ends_first(grad, x, weight, ctx.bias, halo, ctx.args, got, ends, wanted)
                for earlier in reversed(ctx.halos[:-1]):
                    if grad_x is not None:
                        grad_x = disassemble(grad_x, earlier.axis, earlier.dim, earlier.edges, earlier.needs)
                return grad_x, grad_w, grad_b, None, None, None
            x = assemble(x, halo.axis, halo.dim, halo.edges, halo.needs[halo.axis.rank], got)
            grad_x = grad_w = grad_b = home = None
            if to_x:
                grad_x = ctx.args.gradients(grad, x, weight, ctx.bias, [True, False, False])[0]
                last = ctx.halos[-1]
                home = send_home(grad_x, last.axis, last.dim, last.edges, last.needs)
            if to_weight or to_bias:  # while the halo's gradient travels
                _, grad_w, grad_b = ctx.args.gradients(grad, x, weight, ctx.bias, [False, to_weight, to_bias])
            del x
            if grad_x is not None:
                for halo in reversed(ctx.halos):
                    grad_x = disassemble(grad_x, halo.axis, halo.dim, halo.edges, halo.needs, home)
                    home = None
            return grad_x, grad_w, grad_b, None, None, None


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, halos: Sequence[Halo], args: Arguments, overlapped: bool
) -> Tensor:
    """A convolution of my slab; the outputs are those of the whole that the halos' needs are for.

    Args:
        overlapped: compute the interior while the halo travels, and its edge afterwards.
    """
    if not halos:
        plain: Tensor = args.run(x, weight, bias)
        return plain
    out: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, tuple(halos), args, overlapped and not args.transposed
    )
    return out


@dataclass(frozen=True)
class _Ends:
    """The outputs of my slab that read planes of others, at its beginning and its end."""

    padding: tuple[int, ...]
    """With which my own planes alone give as many outputs."""
    sides: tuple[tuple[int, int, Span], ...]
    """First output, how many, and what they read."""


def _ends(x: Tensor, weight: Tensor, halo: Halo, args: Arguments) -> _Ends | None:
    """None if the slab's own planes give no whole number of outputs, or all outputs read planes of others."""
    axis, dim, edges = halo.axis, halo.dim, halo.edges
    begin, end = edges[axis.rank], edges[axis.rank + 1]
    need = halo.needs[axis.rank]
    at = dim - 2
    stride, reach = args.stride[at], args.dilation[at] * (weight.shape[dim] - 1)
    outputs = (need[1] - need[0] - reach - 1) // stride + 1
    # Output o reads need[0] + o * stride and `reach` further.
    pad = begin - need[0]
    low = max(0, -(-pad // stride)) if begin > 0 else 0
    high = sum(need[0] + o * stride + reach >= end for o in range(outputs)) if end < edges[-1] else 0
    if pad < 0 or (end - begin + 2 * pad - reach - 1) // stride + 1 != outputs or low + high >= outputs:
        return None
    padding = list(args.padding)
    padding[at] = pad
    sides = [
        (first, count, (need[0] + first * stride, need[0] + (first + count - 1) * stride + reach + 1))
        for first, count in ((0, low), (outputs - high, high))
        if count
    ]
    return _Ends(tuple(padding), tuple(sides))


def _interior_first(x: Tensor, weight: Tensor, bias: Tensor | None, halo: Halo, args: Any, fetching: Any) -> Any:
    """The convolution of my slab as if there were zeros around it, and then its outer planes again, with the halo.

        my planes        . . [a b c d e f] . .       kernel of 3
        first            o   1 2 3 4 5 6             1 and 6 saw zeros
        then             1   from  halo a b          6   from  e f halo

    None if that is not possible (see `_ends`).
    """
    ends = _ends(x, weight, halo, args)
    if ends is None:
        return None
    out = replace(args, padding=ends.padding).run(x, weight, bias)
    if not ends.sides:
        return out
    got = fetching.wait()
    for first, count, span in ends.sides:
        thin = _between(x, halo.axis, halo.dim, halo.edges, span, got)
        out.narrow(halo.dim, first, count).copy_(args.run(thin, weight, bias))
    return out


def _ends_first(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: list[int] | None,
    halo: Halo,
    args: Arguments,
    got: Sequence[tuple[int, Tensor]],
    ends: _Ends,
    wanted: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The backward of the same: a convolution is linear, so that halos and my own planes each have their share.

    The gradients of the halos come first and travel home while those of my planes are computed; no padded copy of the
    slab is made.
    """
    axis, dim = halo.axis, halo.dim
    homeward = [torch.zeros_like(planes) for _, planes in got]
    weights: list[Tensor] = []
    for first, count, span in ends.sides:
        thin = x.new_zeros([*x.shape[:dim], span[1] - span[0], *x.shape[dim + 1 :]])  # but the halo, zeros
        shared = [_shared(at, planes, span, dim) for at, planes in got]
        for (at, planes), (low, high) in zip(got, shared):
            if low < high:
                thin.narrow(dim, low - span[0], high - low).copy_(planes.narrow(dim, low - at, high - low))
        edge = grad.narrow(dim, first, count)
        to_thin, to_weight, _ = args.gradients(edge, thin, weight, bias, [wanted[0], wanted[1], False])
        if to_weight is not None:
            weights.append(to_weight)
        for part, (at, _), (low, high) in zip(homeward, got, shared):
            if to_thin is not None and low < high:
                part.narrow(dim, low - at, high - low).add_(to_thin.narrow(dim, low - span[0], high - low))
    home = send_parts_home(homeward, x, axis, dim, halo.edges, halo.needs) if wanted[0] else None
    grad_x, grad_w, grad_b = replace(args, padding=ends.padding).gradients(grad, x, weight, bias, wanted)
    if weights and grad_w is not None:
        exact = torch.promote_types(grad_w.dtype, torch.float32)
        grad_w = torch.stack([grad_w, *weights]).sum(0, dtype=exact).to(grad_w.dtype)
    if home is not None:
        assert grad_x is not None
        for at, planes in home.wait():
            grad_x.narrow(dim, at - halo.edges[axis.rank], planes.shape[dim]).add_(planes)
    return grad_x, grad_w, grad_b


def _shared(first: int, planes: Tensor, span: Span, dim: int) -> Span:
    """The planes, counted in the whole, that lie in a span."""
    return max(first, span[0]), min(first + planes.shape[dim], span[1])


def _between(x: Tensor, axis: Axis, dim: int, edges: Any, span: Span, got: Sequence[tuple[int, Tensor]]) -> Tensor:
    """The planes of a span, from mine and the fetched ones."""
    inside = []
    for first, planes in got:
        low, high = max(first, span[0]), min(first + planes.shape[dim], span[1])
        if low < high:
            inside.append((low, planes.narrow(dim, low - first, high - low)))
    return assemble(x, axis, dim, edges, span, inside)

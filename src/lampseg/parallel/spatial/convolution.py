"""Convolutions on slabs: the halo travels while the interior is computed; the slab and thin halos are what is kept."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lampseg.parallel.spatial.ends import Ends, Halo, ends_of
from lampseg.parallel.spatial.exchange import add_home, assemble, disassemble, fetch, send_home, send_parts_home

_aten = torch.ops.aten


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

    def padded(self, dim: int, padding: int) -> "Arguments":
        """The same with other padding along a dimension of the input."""
        each = list(self.padding)
        each[dim - 2] = padding
        return replace(self, padding=tuple(each))

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
            ends = _ends(weight, halo, ctx.args) if ctx.overlapped else None
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


def _ends(weight: Tensor, halo: Halo, args: Arguments) -> Ends | None:
    at = halo.dim - 2
    return ends_of(halo, taps=weight.shape[halo.dim], stride=args.stride[at], dilation=args.dilation[at])


def _interior_first(x: Tensor, weight: Tensor, bias: Tensor | None, halo: Halo, args: Arguments, fetching: Any) -> Any:
    """The convolution of my slab as if there were zeros around it; then what the halo adds to its outer planes.

    None if that is not possible (see `ends_of`).
    """
    ends = _ends(weight, halo, args)
    if ends is None:
        return None
    dim = halo.dim
    out = args.padded(dim, ends.padding).run(x, weight, bias)
    if ends.sides:
        kernels = ends.kernels(weight, dim)
        got = fetching.wait()
        for side, kernel in zip(ends.sides, kernels, strict=True):
            side.outputs(out, dim).add_(args.run(side.thin(got, dim), kernel, None))
    return out


def _ends_first(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: list[int] | None,
    halo: Halo,
    args: Arguments,
    got: Sequence[tuple[int, Tensor]],
    ends: Ends,
    wanted: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The backward of the same.

    The gradients of the halos come first and travel home while those of my planes are computed; no padded copy of the
    slab is made.
    """
    axis, dim = halo.axis, halo.dim
    homeward: list[Tensor | None] = [None] * len(got)
    of_taps: list[Tensor | None] = []
    for side, kernel, edge in zip(ends.sides, ends.kernels(weight, dim), ends.outputs(grad, dim), strict=True):
        thin = side.thin(got, dim)
        to_thin, to_kernel, _ = args.gradients(edge, thin, kernel, bias, [wanted[0], wanted[1], False])
        of_taps.append(to_kernel)
        if to_thin is None:
            continue
        for n, (first, planes) in enumerate(got):
            low, high = side.shared(first, planes, dim)
            if low < high:
                part = to_thin.narrow(dim, low - side.span[0], high - low)
                if part.shape != planes.shape:
                    whole = torch.zeros_like(planes)
                    whole.narrow(dim, low - first, high - low).copy_(part)
                    part = whole
                homeward[n] = part.contiguous()
    home = None
    if wanted[0]:
        parts = [torch.zeros_like(planes) if part is None else part for part, (_, planes) in zip(homeward, got)]
        home = send_parts_home(parts, x, axis, dim, halo.edges, halo.needs)
    grad_x, grad_w, grad_b = args.padded(dim, ends.padding).gradients(grad, x, weight, bias, wanted)
    for side, to_kernel in zip(ends.sides, of_taps):
        if to_kernel is not None:
            assert grad_w is not None
            side.kernel(grad_w, dim).add_(to_kernel)
    if home is not None:
        assert grad_x is not None
        add_home(grad_x, axis, dim, halo.edges, home)
    return grad_x, grad_w, grad_b

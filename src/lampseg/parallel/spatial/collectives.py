"""Differentiable exchanges: halos and whole volumes from slabs, sums over ranks, slabs of replicas.

What makes gradients exact: a replica's gradient on one rank is only that rank's part, and the sum over the ranks is the
true one. So the backward of a sum over ranks is a sum over ranks, a slab of a replica passes its gradient on as it is,
and the gradients of parameters, which are replicas, are summed at the end.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from lampseg.parallel.spatial.exchange import Axis, Span, assemble, disassemble, fetch


class _Planes(Function):
    """The planes that I need of a tensor whose slabs lie between `edges`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: Axis, dim: int, edges: Any, needs: Any, fill: float) -> Tensor:
        ctx.given = axis, dim, edges, needs
        got = fetch(x, axis, dim, edges, needs).wait()
        out = assemble(x, axis, dim, edges, needs[axis.rank], got, fill=fill)
        return out.clone() if out is x else out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch._C.DisableTorchFunction():  # backward runs under the mode, too
            return disassemble(grads[0], *ctx.given), None, None, None, None, None


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, axes: Sequence[Axis]) -> Tensor:
        ctx.axes = axes
        out = x.clone(memory_format=torch.contiguous_format)
        for axis in axes:
            axis.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            total = grads[0].clone(memory_format=torch.contiguous_format)
            for axis in ctx.axes:
                axis.all_reduce(total)
            return total, None


def planes_of(x: Tensor, axis: Axis, dim: int, edges: Sequence[int], needs: Sequence[Span], fill: float = 0) -> Tensor:
    """My planes and the others' that I need, with `fill` beyond the ends; needs[q] is what rank q needs."""
    if all(need == (edges[q], edges[q + 1]) for q, need in enumerate(needs)):
        return x
    out: Tensor = _Planes.apply(x, axis, dim, tuple(edges), tuple(needs), fill)  # type: ignore[no-untyped-call]
    return out


def whole_of(x: Tensor, axis: Axis, dim: int, edges: Sequence[int]) -> Tensor:
    """All planes, on every rank."""
    return planes_of(x, axis, dim, edges, [(0, edges[-1])] * axis.size)


def moved(x: Tensor, axis: Axis, dim: int, edges: Sequence[int], target: Sequence[int]) -> Tensor:
    """The slab between other edges of the same whole."""
    assert edges[-1] == target[-1]
    return planes_of(x, axis, dim, edges, list(itertools.pairwise(target)))


def slab_of(x: Tensor, axis: Axis, dim: int, edges: Sequence[int]) -> Tensor:
    """My planes of a replica."""
    return x.narrow(dim, edges[axis.rank], edges[axis.rank + 1] - edges[axis.rank])


def sum_over(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """The sum of the ranks' tensors, on every rank."""
    if not axes:
        return x
    out: Tensor = _Sum.apply(x, tuple(axes))  # type: ignore[no-untyped-call]
    return out


def largest_over(x: Tensor, axes: Sequence[Axis]) -> Tensor:
    """The largest of the ranks' numbers; without gradient."""
    out = x.detach().clone()
    for axis in axes:
        axis.all_reduce(out, dist.ReduceOp.MAX)
    return out

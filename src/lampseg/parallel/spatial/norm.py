"""Instance, group and batch norm on slabs: statistics are those of all ranks; only the input is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lampseg.parallel.spatial.exchange import Axis
from lampseg.parallel.spatial.norm_kernels import Composed, Fused, Kernels, Table, gradient_of


@dataclass(frozen=True)
class Cut:
    """How an axis cuts the input."""

    axis: Axis
    planes: tuple[int, ...]
    """Of every rank."""


@dataclass(frozen=True)
class Sets:
    """Which voxels share statistics: by default those of a channel of a sample (instance norm)."""

    over_samples: bool = False
    """Batch norm: those of a channel of all samples."""
    groups: int | None = None
    """Group norm: those of a group of channels of a sample."""

    def flat(self, x: Tensor) -> Tensor:
        """(N, C, ...) as (A, R, ...): a row for each channel that has its own weight and statistics."""
        return x if self.over_samples or len(x) == 1 else x.reshape(1, -1, *x.shape[2:])

    def rows(self, x: Tensor) -> Tensor:
        """The same with a row for each set."""
        return self.flat(x) if self.groups is None else x.reshape(1, len(x) * self.groups, -1)

    def spread(self, table: Tensor, channels: int) -> Tensor:
        """From a row for each set to one for each channel."""
        return table if self.groups is None else table.repeat_interleave(channels // self.groups)

    def each(self, parameter: Tensor | None, samples: int, dtype: torch.dtype) -> Tensor | None:
        """A weight for each row of `flat`."""
        if parameter is None:
            return None
        return parameter.to(dtype) if self.over_samples or samples == 1 else parameter.to(dtype).repeat(samples)


INSTANCE = Sets()
BATCH = Sets(over_samples=True)


class Statistics:
    """What a norm found: a row for each set."""

    mean: Tensor
    variance: Callable[[], Tensor]
    """Biased."""
    count: int
    """Voxels of a set."""


class _Norm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        sets: Sets,
        cuts: Sequence[Cut],
        kernels: Kernels,
        found: Statistics,
    ) -> Tensor:
        rows = sets.rows(x)
        table, count = kernels.statistics(rows, eps), rows.numel() // rows.shape[1]
        for cut in cuts:
            counts = tuple(count // cut.planes[cut.axis.rank] * planes for planes in cut.planes)
            table = kernels.joined(cut.axis.all_gather(torch.stack(table)), counts, eps)
            count = sum(counts)
        mean, scatter = table
        found.mean, found.variance, found.count = mean, lambda: kernels.variance(scatter, eps), count
        ctx.sets, ctx.cuts, ctx.eps, ctx.kernels, ctx.count = sets, cuts, eps, kernels, count
        ctx.save_for_backward(x, weight, mean, scatter)
        samples, channels = x.shape[:2]
        ctx.biased, ctx.channels = bias is not None, channels
        out = kernels.applied(
            sets.flat(x),
            sets.each(weight, samples, mean.dtype),
            sets.each(bias, samples, mean.dtype),
            (sets.spread(mean, channels), sets.spread(scatter, channels)),
            eps,
        )
        # Not a view of another tensor: networks write to it in place.
        result: Tensor = out if out.shape == x.shape else torch.ops.aten._unsafe_view(out, list(x.shape))
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, mean, scatter = ctx.saved_tensors  # outside: a checkpoint runs the forward again
        sets, kernels = ctx.sets, ctx.kernels
        with torch._C.DisableTorchFunction():
            samples, channels = x.shape[:2]
            grad, flat = sets.flat(grads[0].contiguous()), sets.flat(x)
            gain = sets.each(weight, samples, mean.dtype)
            table = sets.spread(mean, channels), sets.spread(scatter, channels)
            total, product, of_weight = kernels.sums(grad, flat, gain, table, ctx.eps)
            grad_x = None
            if ctx.needs_input_grad[0]:
                make = _plain if sets.groups is None else _grouped
                grad_x = make(ctx, grad, flat, gain, table, torch.stack([total, product])).view(x.shape)

            def fold(t: Tensor) -> Tensor:
                return (t.view(samples, channels).sum(0) if len(t) > channels else t).to(weight.dtype)

            to_weight = fold(of_weight) if weight is not None and ctx.needs_input_grad[1] else None
            to_bias = fold(total) if ctx.biased and ctx.needs_input_grad[2] else None
            return grad_x, to_weight, to_bias, None, None, None, None, None


def _plain(ctx: Any, grad: Tensor, x: Tensor, gain: Tensor | None, table: Table, sums: Tensor) -> Tensor:
    """The gradient of x where a row is a set."""
    for cut in ctx.cuts:
        cut.axis.all_reduce(sums)
    out: Tensor = ctx.kernels.gradient(grad, x, gain, table, sums, ctx.count, ctx.eps)
    return out


def _grouped(ctx: Any, grad: Tensor, x: Tensor, gain: Tensor | None, table: Table, sums: Tensor) -> Tensor:
    """The same where a set has rows of different weights."""
    mean, scatter = table
    sets, channels = ctx.sets, ctx.channels
    weighted = torch.stack([sums[0], ctx.kernels.product(sums[1], scatter, ctx.eps)])
    weighted = weighted if gain is None else weighted.mul_(gain)
    sums = weighted.view(2, -1, channels // sets.groups).sum(-1)
    for cut in ctx.cuts:
        cut.axis.all_reduce(sums)
    means = [sets.spread(each, channels) for each in (sums / ctx.count).unbind(0)]
    return gradient_of(grad, x, gain, mean, ctx.kernels.inverse(scatter, ctx.eps), *means)


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    sets: Sets,
    cuts: Sequence[Cut],
    fused: bool,
) -> tuple[Tensor, Statistics]:
    """(x - mean) / sqrt(variance + eps) * weight + bias with the statistics of the whole.

    Args:
        x: my slab (N, C, ...).
        sets: which voxels share statistics.
        cuts: how the whole is cut.
        fused: by the kernels that CUDA has for it.
    """
    found = Statistics()
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _Norm.apply(  # type: ignore[no-untyped-call]
            x, weight, bias, eps, sets, tuple(cuts), Fused() if fused else Composed(), found
        )
    return out, found

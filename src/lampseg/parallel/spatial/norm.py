"""Instance, group and batch norm on slabs: statistics are those of all ranks; only the input is kept."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from lampseg.parallel.spatial.exchange import Axis

_aten = torch.ops.aten

Reduction = Callable[[Tensor], Tensor]
"""Sums (..., N, C) over each set of rows that share statistics; the sum stands at every member."""

_CHANNELS = 8
"""Whose copies in float32 exist at once."""


class Statistics:
    """What a norm found: number of voxels, mean, and sum of squared deviations, each (N, C)."""

    count: Tensor
    mean: Tensor
    deviations: Tensor


class _Norm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        reduce: Reduction,
        axes: Sequence[Axis],
        found: Statistics,
    ) -> Tensor:
        samples, channels = x.shape[:2]
        exact = torch.promote_types(x.dtype, torch.float32)
        rows = _rows(x, exact)
        for axis in axes:
            rows = _joined(axis.all_gather(rows), lambda t: t.sum(0))
        count, mean, deviations = _joined(rows.unsqueeze(0), lambda t: reduce(t.squeeze(0)))
        found.count, found.mean, found.deviations = count, mean, deviations
        variance = (deviations / count).reshape(-1)
        mean = mean.reshape(-1)
        ctx.reduce, ctx.axes, ctx.eps = reduce, axes, eps
        ctx.save_for_backward(x, weight, mean, variance, count)
        ctx.biased = bias is not None

        def each(parameter: Tensor | None) -> Tensor | None:
            return None if parameter is None else parameter.to(exact).repeat(samples)

        flat = x.reshape(1, samples * channels, *x.shape[2:])
        out = _aten.native_batch_norm(flat, each(weight), each(bias), mean, variance, False, 0.0, eps)[0]
        # Not a view of another tensor: networks write to it in place.
        result: Tensor = _aten._unsafe_view(out, list(x.shape))
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight, mean, variance, count = ctx.saved_tensors  # outside: a checkpoint runs the forward again
        with torch._C.DisableTorchFunction():
            (grad,) = grads
            samples, channels = x.shape[:2]
            flat = (1, samples * channels, *x.shape[2:])
            scale = torch.ones_like(mean) if weight is None else weight.to(mean.dtype).repeat(samples)
            _, grad_w, grad_b = _aten.native_batch_norm_backward(
                grad.reshape(flat),
                x.reshape(flat),
                scale,
                mean,
                variance,
                None,
                None,
                False,
                ctx.eps,
                [False, True, True],
            )
            grad_x = None
            if ctx.needs_input_grad[0]:
                sums = torch.stack([scale * grad_b, scale * grad_w]).view(2, samples, channels).to(mean.dtype)
                for axis in ctx.axes:
                    axis.all_reduce(sums)
                of_grad, of_product = (ctx.reduce(each).reshape(-1) / count.reshape(-1) for each in sums)
                rstd = (variance + ctx.eps).rsqrt()

                def over_space(t: Tensor) -> Tensor:
                    return t.reshape(samples, channels, *[1] * (x.dim() - 2)).to(x.dtype)

                # rstd * (w * grad - of_grad - normalised * of_product), as one sum of products
                slope = over_space(-rstd * rstd * of_product)
                shift = over_space(rstd * (rstd * of_product * mean - of_grad))
                grad_x = torch.addcmul(shift, x, slope).addcmul_(grad, over_space(rstd * scale))

            def fold(t: Tensor) -> Tensor:
                return t.view(samples, channels).sum(0).to(weight.dtype)

            to_weight = fold(grad_w) if weight is not None and ctx.needs_input_grad[1] else None
            to_bias = fold(grad_b) if ctx.biased and ctx.needs_input_grad[2] else None
            return grad_x, to_weight, to_bias, None, None, None, None


def normalise(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    *,
    eps: float,
    reduce: Reduction,
    axes: Sequence[Axis],
) -> tuple[Tensor, Statistics]:
    """(x - mean) / sqrt(variance + eps) * weight + bias with the statistics of the whole.

    Args:
        x: my slab (N, C, ...).
        reduce: which rows share statistics.
        axes: over which the whole is cut.
    """
    found = Statistics()
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = _Norm.apply(x, weight, bias, eps, reduce, tuple(axes), found)  # type: ignore[no-untyped-call]
    return out, found


def alone(t: Tensor) -> Tensor:
    """Instance norm: every row for itself."""
    return t


def over_samples(t: Tensor) -> Tensor:
    """Batch norm: all samples together."""
    return t.sum(-2, keepdim=True).expand_as(t)


def over_groups(groups: int) -> Reduction:
    """Group norm: the channels of a group."""

    def reduce(t: Tensor) -> Tensor:
        grouped = t.reshape(*t.shape[:-1], groups, -1)
        return grouped.sum(-1, keepdim=True).expand_as(grouped).reshape(t.shape)

    return reduce


def _rows(x: Tensor, exact: torch.dtype) -> Tensor:
    """(3, N, C): number, mean and squared deviations of my voxels."""
    space = tuple(range(2, x.dim()))
    parts = [torch.var_mean(part.to(exact), space, correction=0) for part in x.split(_CHANNELS, 1)]
    variance, mean = (torch.cat([part[which] for part in parts], 1) for which in (0, 1))
    count = torch.full_like(mean, x[0, 0].numel())
    return torch.stack([count, mean, variance * count])


def _joined(parts: Tensor, add: Reduction) -> Tensor:
    """Chan's formula for (K, 3, N, C): `add` sums (K, N, C) over the sets that are joined."""
    counts, means, deviations = parts.unbind(1)
    count = add(counts)
    mean = add(counts * means) / count
    return torch.stack([count, mean, add(deviations + counts * (means - mean).square())])

"""Norms of units: statistics gathered tile by tile (Chan's formula), and what the backward takes of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Callable[[Tensor], Tensor]
"""Sums (..., N, C) over each set of rows that share statistics; the sum stands at every member."""


@dataclass(frozen=True)
class Norm:
    """Batch, instance or group norm as one call has it."""

    reduce: Reduction
    """Which rows (sample, channel) share statistics."""
    eps: float
    weight: Tensor | None
    bias: Tensor | None
    running: tuple[Tensor, Tensor] | None = None
    """Mean and variance: updated if `live`, else used."""
    momentum: float = 0.0
    live: bool = True
    """Whether statistics are those of the input."""

    def rows(self, found: "Statistics") -> "Rows":
        """What it does to every row, and what its backward needs."""
        mean, variance, count = found.joined(self.reduce)
        if self.running is not None:
            self._update(mean, variance, count)
        return Rows(mean, (variance + self.eps).rsqrt(), count)

    def fixed(self, samples: int, dtype: torch.dtype) -> "Rows":
        """The same by the running statistics."""
        assert self.running is not None
        mean, variance = (t.to(dtype).expand(samples, -1) for t in self.running)
        return Rows(mean, (variance + self.eps).rsqrt(), None)

    def _update(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Of the running statistics: with the unbiased variance, and the mean over samples."""
        assert self.running is not None
        new = mean, variance * (count / (count - 1))
        for kept, value in zip(self.running, new, strict=True):
            kept.mul_(1 - self.momentum).add_(value.mean(0).to(kept.dtype), alpha=self.momentum)


@dataclass(frozen=True)
class Rows:
    """Statistics of every row, (N, C)."""

    mean: Tensor
    rstd: Tensor
    count: Tensor | None
    """Voxels that share them; None: they are constants."""

    def affine(self, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Factor and summand of every row: norm(x) = x * factor + summand."""
        factor = self.rstd if weight is None else self.rstd * weight.to(self.rstd.dtype)
        summand = -self.mean * factor
        return factor, summand if bias is None else summand + bias.to(summand.dtype)


class Statistics:
    """Number, mean and squared deviations of every row, of the tiles so far."""

    def __init__(self) -> None:
        self._count = 0
        self._mean: Tensor | None = None
        self._deviations: Tensor | None = None

    def add(self, tile: Tensor) -> None:
        space = tuple(range(2, tile.dim()))
        dtype = torch.promote_types(tile.dtype, torch.float32)
        tile = tile.to(dtype)
        mean = tile.mean(space, keepdim=True)
        # In two steps: on a CPU `torch.var_mean` takes ten times as long.
        deviations, mean = (tile - mean).square_().sum(space), mean.view(tile.shape[:2])
        count = tile[0, 0].numel()
        if self._mean is None or self._deviations is None:
            self._count, self._mean, self._deviations = count, mean, deviations
            return
        total = self._count + count
        apart = mean - self._mean
        self._deviations = self._deviations + deviations + apart.square() * (self._count * count / total)
        self._mean = self._mean + apart * (count / total)
        self._count = total

    def joined(self, reduce: Reduction) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and number of the rows that share statistics, each (N, C)."""
        assert self._mean is not None
        assert self._deviations is not None
        counts = torch.full_like(self._mean, self._count)
        count = reduce(counts)
        mean = reduce(counts * self._mean) / count
        deviations = reduce(self._deviations + counts * (mean - self._mean).square())
        return mean.contiguous(), (deviations / count).contiguous(), count.contiguous()


class Sums:
    """Of the gradient at the norm's result, and of its product with the normalised input: over the tiles so far."""

    def __init__(self) -> None:
        self.grad: Tensor | None = None
        self.product: Tensor | None = None

    def add(self, grad: Tensor, normalised: Tensor) -> None:
        space = tuple(range(2, grad.dim()))
        grad_sum, product_sum = grad.sum(space), (grad * normalised).sum(space)
        self.grad = grad_sum if self.grad is None else self.grad + grad_sum
        self.product = product_sum if self.product is None else self.product + product_sum

    def of_input(self, rows: Rows, weight: Tensor | None, reduce: Reduction) -> tuple[Tensor, Tensor, Tensor]:
        """a, b and c, (N, C): the gradient at the input is a * grad + b * normalised + c."""
        assert self.grad is not None
        assert self.product is not None
        gain = torch.ones_like(rows.rstd) if weight is None else weight.to(rows.rstd.dtype).expand_as(rows.rstd)
        slope = rows.rstd * gain
        if rows.count is None:
            nothing = torch.zeros_like(slope)
            return slope, nothing, nothing
        of_grad, of_product = (reduce(gain * each) / rows.count for each in (self.grad, self.product))
        return slope, -rows.rstd * of_product, -rows.rstd * of_grad

    def of_parameters(self) -> tuple[Tensor, Tensor]:
        """Gradients of weight and bias, (C,)."""
        assert self.grad is not None
        assert self.product is not None
        return self.product.sum(0), self.grad.sum(0)


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


def _batch(
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Norm:
    return Norm(over_samples, eps, weight, bias, _pair(running_mean, running_var), momentum, training)


def _instance(
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Norm:
    return Norm(alone, eps, weight, bias, _pair(running_mean, running_var), momentum, use_input_stats)


def _group(num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5) -> Norm:
    return Norm(over_groups(num_groups), eps, weight, bias)


_KINDS: Mapping[Any, Callable[..., Norm]] = {F.batch_norm: _batch, F.instance_norm: _instance, F.group_norm: _group}


def norm_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Norm | None:
    """The norm that a call is; None: it is none that is known here. The first argument is its input."""
    make = _KINDS.get(func)
    if make is None:
        return None
    rest = args if "input" in kwargs else args[1:]
    norm = make(*rest, **{name: value for name, value in kwargs.items() if name != "input"})
    return norm if norm.live or norm.running is not None else None


def _pair(mean: Tensor | None, variance: Tensor | None) -> tuple[Tensor, Tensor] | None:
    return None if mean is None or variance is None else (mean, variance)

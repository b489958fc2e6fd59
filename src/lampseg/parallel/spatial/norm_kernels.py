"""The passes of a norm over memory, in two ways: by the kernels of CUDA's SyncBatchNorm, and by what every device has.

A norm on slabs has four: statistics of my voxels, the normalised result, sums for the gradient, the gradient. Between
them ranks put their tables together. All take tensors (A, R, ...), whose voxels of one row share a mean; tables are
(R,), at least in float32.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

_aten = torch.ops.aten
_LARGEST = 2**31 - 1
"""CUDA's kernel takes the number of voxels in 32 bits."""

Table = tuple[Tensor, Tensor]
"""Mean, and how far the voxels scatter: the variance, or on CUDA 1 / sqrt(variance + eps)."""


class Kernels(Protocol):
    """One way."""

    def statistics(self, x: Tensor, eps: float) -> Table:
        """Of my voxels."""
        ...

    def joined(self, parts: Tensor, counts: tuple[int, ...], eps: float) -> Table:
        """Of all ranks' voxels.

        Args:
            parts: their tables, (K, 2, R).
            counts: voxels of a row on each.
        """
        ...

    def variance(self, scatter: Tensor, eps: float) -> Tensor: ...

    def inverse(self, scatter: Tensor, eps: float) -> Tensor:
        """1 / sqrt(variance + eps)."""
        ...

    def applied(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, table: Table, eps: float) -> Tensor:
        """(x - mean) / sqrt(variance + eps) * weight + bias."""
        ...

    def sums(
        self, grad: Tensor, x: Tensor, weight: Tensor | None, table: Table, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of grad, of its product with what `product` makes of it, and the gradient of the weight (if there is one)."""
        ...

    def product(self, total: Tensor, scatter: Tensor, eps: float) -> Tensor:
        """The sum of grad * (x - mean) / sqrt(variance + eps) from the second of `sums`."""
        ...

    def gradient(
        self, grad: Tensor, x: Tensor, weight: Tensor | None, table: Table, sums: Tensor, count: int, eps: float
    ) -> Tensor:
        """Of x, where all voxels of a row have one weight.

        Args:
            sums: the first two over all ranks, (2, R).
            count: voxels of a row on all ranks.
        """
        ...


class Composed:
    """Of operators that every device has."""

    def statistics(self, x: Tensor, eps: float) -> Table:
        # In one pass and without a copy in float32: the operator takes the type of tables from the running ones.
        like = [x.new_zeros(x.shape[1], dtype=_exact(x)) for _ in range(2)] if x.dtype != _exact(x) else [None, None]
        mean, variance = _aten.batch_norm_update_stats(x, *like, 0.0)
        return mean, variance

    def joined(self, parts: Tensor, counts: tuple[int, ...], eps: float) -> Table:
        share = _known(parts, tuple(count / sum(counts) for count in counts), parts.dtype)[:, None]  # Chan's formula
        means, variances = parts.unbind(1)
        mean = (share * means).sum(0)
        return mean, (share * (means - mean).square_().add_(variances)).sum(0)

    def variance(self, scatter: Tensor, eps: float) -> Tensor:
        return scatter

    def inverse(self, scatter: Tensor, eps: float) -> Tensor:
        return (scatter + eps).rsqrt_()

    def applied(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, table: Table, eps: float) -> Tensor:
        out: Tensor = _aten.native_batch_norm(x, weight, bias, *table, False, 0.0, eps)[0]
        return out

    def sums(
        self, grad: Tensor, x: Tensor, weight: Tensor | None, table: Table, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        gain = torch.ones_like(table[0]) if weight is None else weight
        _, product, total = _aten.native_batch_norm_backward(
            grad, x, gain, *table, None, None, False, eps, [False, True, True]
        )
        return total, product, product

    def product(self, total: Tensor, scatter: Tensor, eps: float) -> Tensor:
        return total

    def gradient(
        self, grad: Tensor, x: Tensor, weight: Tensor | None, table: Table, sums: Tensor, count: int, eps: float
    ) -> Tensor:
        inverse = self.inverse(table[1], eps)
        means = sums / count if weight is None else sums * (weight / count)
        return gradient_of(grad, x, weight, table[0], inverse, *means.unbind(0))


class Fused:
    """CUDA's: statistics read the input once, the result takes one reading, the gradient two of both."""

    def statistics(self, x: Tensor, eps: float) -> Table:
        mean, inverse = _aten.batch_norm_stats(x, eps)
        return mean, inverse

    def joined(self, parts: Tensor, counts: tuple[int, ...], eps: float) -> Table:
        # The first argument tells the type of the counts only; in bfloat16 these would be rounded.
        mean, inverse = _aten.batch_norm_gather_stats_with_counts(
            parts, parts[:, 0], parts[:, 1], None, None, 0.0, eps, _known(parts, counts, parts.dtype)
        )
        return mean, inverse

    def variance(self, scatter: Tensor, eps: float) -> Tensor:
        return scatter.pow(-2).sub_(eps)

    def inverse(self, scatter: Tensor, eps: float) -> Tensor:
        return scatter

    def applied(self, x: Tensor, weight: Tensor | None, bias: Tensor | None, table: Table, eps: float) -> Tensor:
        out: Tensor = _aten.batch_norm_elemt(x, weight, bias, *table, eps)
        return out

    def sums(
        self, grad: Tensor, x: Tensor, weight: Tensor | None, table: Table, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        total, product, of_weight, _ = _aten.batch_norm_backward_reduce(
            grad, x, *table, weight, True, weight is not None, False
        )
        return total, product, of_weight

    def product(self, total: Tensor, scatter: Tensor, eps: float) -> Tensor:
        return total * scatter  # it is the sum of grad * (x - mean)

    def gradient(
        self, grad: Tensor, x: Tensor, weight: Tensor | None, table: Table, sums: Tensor, count: int, eps: float
    ) -> Tensor:
        mean, inverse = table
        if count > _LARGEST:
            means = sums / count if weight is None else sums * (weight / count)
            return gradient_of(grad, x, weight, mean, inverse, means[0], means[1] * inverse)
        number = _known(sums, (count,), torch.int32)
        out: Tensor = _aten.batch_norm_backward_elemt(grad, x, mean, inverse, weight, sums[0], sums[1], number)
        return out


def gradient_of(
    grad: Tensor, x: Tensor, weight: Tensor | None, mean: Tensor, inverse: Tensor, of_grad: Tensor, of_product: Tensor
) -> Tensor:
    """inverse * (weight * grad - of_grad - normalised * of_product), as one sum of products.

    Args:
        of_grad, of_product: means of weight * grad, and of its product with the normalised x.
    """

    def over_space(t: Tensor) -> Tensor:
        return t.reshape(-1, *[1] * (x.dim() - 2)).to(x.dtype)

    of_product = inverse * of_product
    shift = over_space(inverse * (of_product * mean - of_grad))
    slope = over_space(-inverse * of_product)
    scale = over_space(inverse if weight is None else inverse * weight)
    return torch.addcmul(shift, x, slope).addcmul_(grad, scale)


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _known(like: Tensor, numbers: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Numbers that stay on the device: to copy them there would make the host wait for it, in every norm."""
    if isinstance(like, FakeTensor) or like.is_meta:
        return like.new_empty(len(numbers), dtype=dtype)
    return _kept(tuple(numbers), dtype, like.device)


@lru_cache(1024)
def _kept(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)

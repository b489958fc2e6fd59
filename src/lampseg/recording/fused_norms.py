"""What the operators of a synchronised batch norm return, for dry runs.

PyTorch can't tell for fake tensors: of CUDA's it says so, and the CPU's it would run, on real memory as large.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_aten = torch.ops.aten


def _stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape[1], dtype=dtype), x.new_empty(x.shape[1], dtype=dtype)


def _gathered(like: Tensor, mean: Tensor, invstd: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(like.dtype, torch.float32)
    return mean.new_empty(mean.shape[1], dtype=dtype), mean.new_empty(mean.shape[1], dtype=dtype)


def _applied(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


def _sums(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    to_input: bool,
    to_weight: bool,
    to_bias: bool,
) -> tuple[Tensor | None, ...]:
    sums = [torch.empty_like(mean) if to_input else None for _ in range(2)]
    return *sums, *(torch.empty_like(weight) if weight is not None and on else None for on in (to_weight, to_bias))


def _counted(x: Tensor, running_mean: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    dtype = x.dtype if running_mean is None else running_mean.dtype
    return x.new_empty(x.shape[1], dtype=dtype), x.new_empty(x.shape[1], dtype=dtype)


FAKES: dict[Any, Callable[..., Any]] = {
    _aten.batch_norm_update_stats.default: _counted,
    _aten.batch_norm_stats.default: _stats,
    _aten.batch_norm_gather_stats_with_counts.default: _gathered,
    _aten.batch_norm_elemt.default: _applied,
    _aten.batch_norm_backward_reduce.default: _sums,
    _aten.batch_norm_backward_elemt.default: _applied,
}
"""By operator; to be called under the mode that makes the results fake."""

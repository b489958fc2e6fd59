"""The loss of a network's output, also where it returns several (deep supervision)."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from lampseg.errors import UserError
from lampseg.training.loss import HybridLoss


def logits_of(output: Any) -> list[Tensor]:
    """The logits a network returned, finest first: one tensor, a list, or stacked as (N, levels, C, X, Y, Z)."""
    if isinstance(output, Tensor):
        return list(output.unbind(1)) if output.dim() == 6 else [output]
    if isinstance(output, list | tuple) and output and all(isinstance(level, Tensor) for level in output):
        return list(output)
    raise UserError(f"the network returns {type(output).__name__}; expected logits (N, C, X, Y, Z) or a list of them")


def supervised_loss(
    loss: HybridLoss, output: Any, target: Tensor, annotated: Tensor | None, valid: Tensor | None
) -> Tensor:
    """Per-sample losses (N,): the levels' losses weighted 1, 1/2, 1/4, ... (normalised to 1).

    A level of lower resolution is compared with the labels at the nearest voxels.
    """
    levels = logits_of(output)
    weights = [0.5**level for level in range(len(levels))]
    total: Tensor | None = None
    for weight, logits in zip(weights, levels):
        labels, inside = target, valid
        if logits.shape[2:] != target.shape[1:]:
            labels = _shrink(target, logits.shape[2:]).long()
            inside = None if valid is None else _shrink(valid, logits.shape[2:]).bool()
        term = loss(logits, labels, annotated, inside) * (weight / sum(weights))
        total = term if total is None else total + term
    assert total is not None
    return total


def _shrink(labels: Tensor, size: tuple[int, ...]) -> Tensor:
    return F.interpolate(labels[:, None].double(), size=size, mode="nearest")[:, 0]

"""The loss as the planner needs it: on a network's output alone, with labels of unknown content."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lampseg.config import LossConfig
from lampseg.partition.costed import MicroBatchLoss
from lampseg.training.loss import HybridLoss, mini_batch_loss
from lampseg.training.supervision import logits_of, supervised_loss


@cache
def planned_loss(config: LossConfig, *, classes: int, padded: bool = False) -> MicroBatchLoss:
    """The loss of one micro-batch as the trainer computes it; to be run on fake tensors.

    Args:
        padded: volumes have padding, which the loss masks: that takes copies of the logits.
    """
    hybrid = HybridLoss((1.0,) * classes, config.focal, config.gamma)

    def loss(output: Any, shape: tuple[int, ...], placed: Callable[[Tensor], Tensor] = lambda t: t) -> Tensor:
        device = logits_of(output)[0].device
        target = placed(torch.empty((shape[0], *shape[2:]), dtype=torch.int64, device=device))
        annotated = torch.empty((shape[0], classes), dtype=torch.bool, device=device)
        valid = placed(torch.empty(target.shape, dtype=torch.bool, device=device)) if padded else None
        return mini_batch_loss(supervised_loss(hybrid, output, target, annotated, valid), batch=shape[0])

    return loss

"""The loss as the planner needs it: on a network's output alone, with labels of unknown content."""

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

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
        logits = logits_of(output)[0]
        device = logits.device
        target = placed(torch.empty((shape[0], *shape[2:]), dtype=torch.int64, device=device))
        annotated = torch.empty((shape[0], classes), dtype=torch.bool, device=device)
        valid = placed(torch.empty(target.shape, dtype=torch.bool, device=device)) if padded else None
        return mini_batch_loss(
            supervised_loss(_among_fakes(hybrid, logits), output, target, annotated, valid), batch=shape[0]
        )

    return loss


def _among_fakes(loss: HybridLoss, logits: Tensor) -> HybridLoss:
    """The loss with a fake tensor for its weights, if the logits are fake.

    PyTorch would make one itself, but for that it loads its compiler, which takes a second.
    """
    if not isinstance(logits, FakeTensor):
        return loss
    real = loss.class_weights
    with torch._C._DisableTorchDispatch():
        meta = torch.empty_like(real, device="meta")
        mode = logits.fake_mode
        fake = mode.fake_tensor_converter.from_meta_and_device(mode, meta, real.device)
    twin = copy.copy(loss)
    twin._buffers = {"class_weights": fake}
    return twin

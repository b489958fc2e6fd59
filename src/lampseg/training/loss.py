"""AnatomyNet's hybrid loss: class-weighted soft Dice plus focal loss, absent annotations and padding masked."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lampseg.errors import UserError

BYTES_PER_LOGIT = 12.5
"""What the loss saves for backward, in bytes for each logit in float32: three maps of all classes and some of one."""

SMOOTH = 1e-5
"""Added to numerator and denominator of Dice, so that a class neither present nor predicted costs nothing."""


class HybridLoss(nn.Module):
    """Class-weighted soft Dice + `focal` x class-weighted focal loss, on softmax, per sample.

    For one sample with classes c = 0 .. C-1 (0 is background), valid voxels V, probabilities p = softmax(logits)
    over the classes, label y_v of voxel v, class weights w_c and annotation masks a_c in {0, 1}:

        TP_c = sum of p_cv over v in V with y_v = c
        FN_c = sum of 1 - p_cv over v in V with y_v = c
        FP_c = sum of p_cv over v in V with y_v != c
        Dice_c  = 1 - (TP_c + s) / (TP_c + FN_c / 2 + FP_c / 2 + s),   s = 1e-5
        Focal_c = -(1 / |V|) * sum of (1 - p_cv)^gamma * log p_cv over v in V with y_v = c
        loss    = (1 / C) * sum over c of a_c * w_c * (Dice_c + focal * Focal_c)

    Masks: a class that is not annotated in a sample has a_c = 0. The background then has a_0 = 0 too: a voxel
    labelled background there may belong to the missing organ. It certainly belongs to no annotated class, so it
    still counts as a false positive for those. Padding (not `valid`) is outside V and takes no part at all.

    The mean over classes divides by C whatever is masked, as the authors' training script does: an organ's term
    then has the same weight in every case, and a sample's loss does not depend on the other samples, so that the
    mean over a mini-batch is the same however it is cut into micro-batches.

    Sources: Zhu et al., AnatomyNet (Medical Physics 2019), its hybrid loss with masks and class weights (there
    summed over classes); Zhu et al., LAMP (MICCAI 2020), released training script (mean over batch and classes).
    """

    class_weights: Tensor

    def __init__(self, class_weights: Tensor | Sequence[float], focal: float = 0.5, gamma: float = 2.0) -> None:
        """Args:
            class_weights: one weight per class, background first.
            focal: weight of the focal term.
            gamma: focusing exponent; 0 makes the focal term a cross entropy.

        Raises:
            UserError: weights that are not a list of finite numbers >= 0, or a negative `focal` or `gamma`.
        """
        super().__init__()
        weights = torch.as_tensor(class_weights, dtype=torch.float64)
        if weights.dim() != 1 or not len(weights) or not bool(((weights >= 0) & weights.isfinite()).all()):
            raise UserError(f"loss.class_weights: {class_weights!r}: give one finite weight >= 0 per class")
        for field, value in (("focal", focal), ("gamma", gamma)):
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"loss.{field}: {value!r} is not possible; give a finite number >= 0")
        self.register_buffer("class_weights", weights, persistent=False)
        self.focal = focal
        self.gamma = gamma

    def forward(
        self, logits: Tensor, target: Tensor, annotated: Tensor | None = None, valid: Tensor | None = None
    ) -> Tensor:
        """The loss of each sample, (N,), in float32 or, for float64 logits, float64.

        Args:
            logits: (N, C, *spatial), any floating dtype.
            target: (N, *spatial), integer labels 0 .. C-1; anything where not valid.
            annotated: (N, C) bool, whether the class was drawn in the sample; None: every class was.
            valid: (N, *spatial) bool, False on padding; None: every voxel is valid.

        Raises:
            UserError: shapes that do not fit each other or the number of weights, or labels that are not integers.
        """
        self._check(logits, target, annotated, valid)
        n, classes = logits.shape[:2]
        dtype = torch.promote_types(logits.dtype, torch.float32)
        scores = logits.to(dtype).flatten(2)
        labels = target.flatten(1).long()
        inside = torch.ones_like(labels, dtype=torch.bool) if valid is None else valid.flatten(1).bool()
        if valid is not None:
            # Before the softmax, so that not even a NaN in the padding gets through, forward or backward.
            scores = torch.where(inside[:, None], scores, scores.new_zeros(()))
            labels = torch.where(inside, labels, torch.zeros_like(labels))
        log_p = torch.log_softmax(scores, dim=1)
        coefficients = self._coefficients(annotated, n, dtype, logits.device)

        log_true = log_p.gather(1, labels[:, None]).squeeze(1)
        p_true = log_true.exp()
        focal = self._focal(log_true, p_true) * coefficients.gather(1, labels) * inside
        focal_sum = focal.sum(1) / inside.sum(1).clamp(min=1)

        p = log_p.exp() if valid is None else log_p.exp() * inside[:, None]
        dice = _soft_dice(p.sum(2), p_true, labels, inside, classes)
        return ((coefficients * dice).sum(1) + self.focal * focal_sum) / classes

    def _coefficients(self, annotated: Tensor | None, n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """a_c * w_c, (N, C)."""
        weights = self.class_weights.to(device=device, dtype=dtype).expand(n, -1)
        if annotated is None:
            return weights
        mask = annotated.to(device=device, dtype=torch.bool)
        complete = mask.all(dim=1, keepdim=True)
        return weights * torch.cat([complete, mask[:, 1:]], dim=1)

    def _focal(self, log_true: Tensor, p_true: Tensor) -> Tensor:
        """(1 - p)^gamma * -log p. The floor keeps the gradient finite at p = 1 for gamma between 0 and 1."""
        wrong = (1 - p_true).clamp(min=torch.finfo(p_true.dtype).tiny)
        return -log_true * wrong.pow(self.gamma)

    def _check(self, logits: Tensor, target: Tensor, annotated: Tensor | None, valid: Tensor | None) -> None:
        classes = len(self.class_weights)
        if logits.dim() < 3 or logits.shape[1] != classes:
            raise UserError(
                f"loss: logits of shape {tuple(logits.shape)}, but there are {classes} class weights; expected "
                f"(batch, {classes}, size, ...): set loss.class_weights to one weight per class of the network"
            )
        labels = (logits.shape[0], *logits.shape[2:])
        expected = {"target": (target, labels), "annotated": (annotated, logits.shape[:2]), "valid": (valid, labels)}
        for name, (tensor, shape) in expected.items():
            if tensor is not None and tuple(tensor.shape) != tuple(shape):
                raise UserError(
                    f"loss: {name} has shape {tuple(tensor.shape)}, but logits of shape {tuple(logits.shape)} "
                    f"need {tuple(shape)}"
                )
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise UserError(f"loss: target holds {target.dtype}; give integer class labels, such as int64")


def mini_batch_loss(losses: Tensor, *, batch: int | None = None) -> Tensor:
    """The scalar to differentiate: the sum of per-sample losses (N,) divided by the mini-batch size.

    `batch` is the number of samples in the whole mini-batch when `losses` holds one micro-batch of it: the values
    of all micro-batches then add up to the mean over the mini-batch, and so do their gradients. None: N.
    """
    return losses.sum() / (len(losses) if batch is None else batch)


def _soft_dice(predicted: Tensor, p_true: Tensor, labels: Tensor, inside: Tensor, classes: int) -> Tensor:
    """Dice_c, (N, C), from the sums of p_c (N, C) and the probability of the true class per voxel (N, V).

    TP + FN is the number of voxels of the class and TP + FP the sum of p_c, hence the denominator. One masked sum
    per class, where a scatter would be one call but not repeatable on CUDA.
    """
    zero = p_true.new_zeros(())
    members = [(labels == c) & inside for c in range(classes)]
    hits = torch.stack([torch.where(member, p_true, zero).sum(1) for member in members], dim=1)
    voxels = torch.stack([member.sum(1) for member in members], dim=1)
    return 1 - (hits + SMOOTH) / ((predicted + voxels) / 2 + SMOOTH)

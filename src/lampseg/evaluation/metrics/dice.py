"""Dice per class of one predicted label map against the true one, with absent annotations left out."""

from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray


def dice_per_class(
    prediction: torch.Tensor | NDArray[np.integer],
    truth: torch.Tensor | NDArray[np.integer],
    *,
    classes: int,
    annotated: Collection[int] | None = None,
) -> tuple[float | None, ...]:
    """Dice = 2 |P and T| / (|P| + |T|) of every foreground class; background (0) is not scored.

    The rule, class by class:

    - not annotated in this case: None (its truth is unknown, whatever was predicted);
    - in neither map: None (there was nothing to find and nothing was found; a 1 would flatter the mean);
    - predicted but not in the truth: 0;
    - otherwise the formula.

    None means "excluded": it enters no mean. A class that is not annotated changes nothing for the others.

    The count is MONAI's `DiceHelper` on integer maps, one class at a time: no one-hot volume is made.

    Args:
        prediction: integer labels, any shape, e.g. (X, Y, Z).
        truth: integer labels of the same shape.
        classes: number of classes, background included.
        annotated: the foreground classes drawn in this case; None: all of them.

    Returns:
        `classes - 1` values: that of class 1 first.
    """
    from monai.metrics import DiceHelper  # seconds, for each process of `evaluate --jobs`

    assert classes >= 2, "Dice needs a foreground class"
    predicted, true = torch.as_tensor(prediction), torch.as_tensor(truth)
    assert predicted.shape == true.shape, f"shapes differ: {tuple(predicted.shape)} and {tuple(true.shape)}"
    helper = DiceHelper(
        include_background=False,
        ignore_empty=False,
        num_classes=classes,
        get_not_nans=False,
        reduction="none",
    )
    # One line of voxels: the helper only counts, and so takes any number of dimensions.
    scores = helper(predicted.reshape(1, 1, -1), true.reshape(1, 1, -1))[0].tolist()
    drawn = set(range(1, classes)) if annotated is None else set(annotated)
    # With an empty truth the helper gives 1 (nothing predicted either) or 0; only then can both be absent.
    return tuple(
        None if c not in drawn or (score == 1.0 and not bool((true == c).any())) else float(score)
        for c, score in enumerate(scores, start=1)
    )

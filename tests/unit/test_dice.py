"""Dice per class: against MONAI on one-hot volumes, against counting, and what is excluded."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_dice
from torch.nn.functional import one_hot

from lampseg.evaluation import dice_per_class

CLASSES = 5


def label_maps(seed: int, shape: tuple[int, ...] = (7, 9, 6)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, shape).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.6, truth, rng.integers(0, CLASSES, shape)).astype(np.uint8)
    return prediction, truth


@pytest.mark.parametrize("shape", [(7, 9, 6), (11, 4), (1, 3, 2, 5)])
def test_equals_monai_on_one_hot_volumes(shape: tuple[int, ...]) -> None:
    prediction, truth = label_maps(0, shape)
    batches = [one_hot(torch.from_numpy(a).long(), CLASSES).movedim(-1, 0)[None] for a in (prediction, truth)]
    expected = compute_dice(*batches, include_background=False)[0].tolist()
    assert dice_per_class(prediction, truth, classes=CLASSES) == pytest.approx(expected, abs=1e-6)


def test_equals_the_formula_counted_by_hand() -> None:
    truth = np.array([1, 1, 1, 0, 2, 2, 0, 0])
    prediction = np.array([1, 1, 0, 1, 2, 0, 0, 0])
    assert dice_per_class(prediction, truth, classes=3) == pytest.approx((2 * 2 / 6, 2 * 1 / 3))


def test_tensors_and_arrays_of_any_integer_type_agree() -> None:
    prediction, truth = label_maps(1)
    expected = dice_per_class(prediction, truth, classes=CLASSES)
    assert dice_per_class(torch.from_numpy(prediction).long(), truth, classes=CLASSES) == expected
    assert dice_per_class(prediction.astype(np.int16), truth.astype(np.int64), classes=CLASSES) == expected


def test_found_nowhere_is_excluded_and_found_wrongly_is_zero() -> None:
    truth = np.array([0, 1, 1, 0])
    prediction = np.array([0, 1, 1, 3])
    assert dice_per_class(prediction, truth, classes=4) == (1.0, None, 0.0)


def test_missed_class_is_zero() -> None:
    assert dice_per_class(np.zeros(4, np.uint8), np.array([0, 1, 1, 0]), classes=2) == (0.0,)


def test_class_that_is_not_annotated_is_excluded_and_changes_no_other() -> None:
    prediction, truth = label_maps(2)
    truth[truth == 3] = 0  # not drawn: the truth shows background there, the prediction still finds it
    everything = dice_per_class(prediction, truth, classes=CLASSES)
    masked = dice_per_class(prediction, truth, classes=CLASSES, annotated=(1, 2, 4))
    assert everything[2] == 0.0
    assert masked == (*everything[:2], None, everything[3])


def test_shapes_must_agree() -> None:
    with pytest.raises(AssertionError, match="shapes differ"):
        dice_per_class(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), classes=2)

"""Adaptive class weights: the formula, its bounds, missing annotations, bad input."""

import math

import pytest

from lampseg.errors import UserError
from lampseg.training.class_weights import adaptive_class_weights, unseen_classes


def test_formula_on_complete_cases():
    # Pooled frequencies 0.9, 0.09, 0.01 of 2000 voxels.
    weights = adaptive_class_weights([[900, 90, 10], [900, 90, 10]], [[1, 1, 1]] * 2)
    raw = [1, 2, 1 + math.log10(90)]
    assert weights == pytest.approx([w * 3 / sum(raw) for w in raw], rel=1e-12)
    assert sum(weights) == pytest.approx(3)


def test_only_cases_where_the_class_is_annotated_count():
    # Class 1 holds a tenth of the one case where it was drawn; elsewhere its voxels are unknown, not zero.
    weights = adaptive_class_weights([[900, 100], [1000, 0], [1000, 0]], [[1, 1], [1, 0], [1, 0]])
    background = 2900 / 3000
    assert weights[1] / weights[0] == pytest.approx(1 + math.log10(background / 0.1), rel=1e-12)


def test_pooling_weighs_cases_by_their_size():
    weights = adaptive_class_weights([[90, 10], [900, 0]], [[1, 1], [1, 1]])
    assert weights[1] / weights[0] == pytest.approx(1 + math.log10(99), rel=1e-12)


def test_tiny_organs_do_not_make_the_background_vanish():
    volume = 512 * 512 * 704
    weights = adaptive_class_weights([[volume - 1_000_001, 1_000_000, 1]], [[1, 1, 1]])
    assert weights[0] < weights[1] < weights[2]
    assert weights[2] / weights[0] < 11
    assert weights[0] > 0.15


def test_unseen_classes_get_the_rarest_weight_and_are_named():
    voxels, annotated = [[900, 90, 10, 0, 0], [900, 90, 10, 0, 0]], [[1, 1, 1, 0, 1]] * 2
    weights = adaptive_class_weights(voxels, annotated)
    assert weights[3] == weights[4] == weights[2]
    assert unseen_classes(voxels, annotated) == (3, 4)
    assert unseen_classes([[5, 5]], [[True, True]]) == ()


@pytest.mark.parametrize(
    ("voxels", "annotated", "message"),
    [
        ([], [], "0 cases"),
        ([[1, 2]], [], "of 1 cases and annotations of 0"),
        ([[1, 2], [1, 2, 3]], [[1, 1], [1, 1]], "case 1 has 3 voxel counts"),
        ([[1, 2]], [[1]], "case 0 has 2 voxel counts and 1 annotations"),
        ([[1, -2]], [[1, 1]], "case 0 has a negative"),
        ([[0, 0]], [[1, 1]], "no case has a voxel"),
        ([[4, 4]], [[0, 0]], "no case has a voxel"),
    ],
)
def test_bad_input_is_named(voxels, annotated, message):
    with pytest.raises(UserError, match=message):
        adaptive_class_weights(voxels, annotated)

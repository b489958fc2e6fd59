"""Surface distances in mm: against what can be reckoned by hand, and against MONAI's functions."""

import math
import warnings

import numpy as np
import pytest
import torch
from monai.metrics import compute_average_surface_distance, compute_hausdorff_distance, compute_surface_dice
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, gaussian_filter

from lampseg.denormals import denormals
from lampseg.evaluation.metrics.surfaces import surface_dice, surface_voxels, voxel_distances

Mask = NDArray[np.bool_]
SPACINGS = [(1.0, 1.0, 1.0), (0.5, 2.0, 3.5), (3.0, 0.7, 1.1)]


def blank(*shape: int) -> Mask:
    return np.zeros(shape, bool)


def blobs(seed: int, shape: tuple[int, int, int] = (17, 14, 11)) -> tuple[Mask, Mask]:
    """Two alike masks that reach the border of the array."""
    rng = np.random.default_rng(seed)
    noise = gaussian_filter(rng.normal(size=shape), 2)
    return noise + gaussian_filter(rng.normal(size=shape), 1) * 0.2 > 0.02, noise > 0.02


def monai(prediction: Mask, truth: Mask, *, spacing: tuple[float, float, float], tolerance: float) -> list[float]:
    pair = [torch.from_numpy(mask)[None, None] for mask in (prediction, truth)]
    options = {"include_background": True, "spacing": list(spacing)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            compute_hausdorff_distance(*pair, percentile=95, **options).item(),
            compute_average_surface_distance(*pair, symmetric=True, **options).item(),
            compute_surface_dice(*pair, class_thresholds=[tolerance], use_subvoxels=True, **options).item(),
        ]


def test_two_voxels_are_as_far_apart_as_pythagoras_says() -> None:
    truth, prediction = blank(6, 6, 6), blank(6, 6, 6)
    truth[1, 1, 1] = prediction[3, 2, 4] = True
    found = voxel_distances(prediction, truth, spacing=(0.5, 2.0, 3.0))
    far = math.sqrt(1.0**2 + 2.0**2 + 9.0**2)
    assert (found.hd95, found.assd) == pytest.approx((far, far))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shifted_plane_is_off_by_its_shift_in_mm(axis: int) -> None:
    spacing = (0.5, 2.0, 3.0)
    truth, prediction = blank(8, 8, 8), blank(8, 8, 8)
    np.moveaxis(truth, axis, 0)[2] = np.moveaxis(prediction, axis, 0)[4] = True
    found = voxel_distances(prediction, truth, spacing=spacing)
    assert (found.hd95, found.assd) == pytest.approx((2 * spacing[axis],) * 2)


def test_a_longer_box_by_hand() -> None:
    """Truth: 1 x 1 x 4 voxels; the prediction goes on for 4 more, each 2.5 mm."""
    truth, prediction = blank(3, 3, 9), blank(3, 3, 9)
    truth[1, 1, :4] = prediction[1, 1, :8] = True
    found = voxel_distances(prediction, truth, spacing=(1.0, 1.0, 2.5))
    further = [2.5, 5.0, 7.5, 10.0]
    assert sorted(found.to_truth.tolist()) == pytest.approx([0.0] * 4 + further)
    assert found.to_prediction.tolist() == [0.0] * 4
    assert found.assd == pytest.approx(sum(further) / 12)  # over all 8 + 4, not the mean of two means
    assert found.hd95 == pytest.approx(7.5 + 0.65 * 2.5)  # rank 0.95 * 7 = 6.65 of 0, ..., 7
    assert voxel_distances(truth, prediction, spacing=(1.0, 1.0, 2.5)).hd95 == found.hd95  # the larger direction


def test_surface_dice_of_two_neighbouring_voxels_by_hand() -> None:
    """Eight equal elements each, at the corners of a voxel; four of them are shared, four lie one voxel further."""
    truth, prediction = blank(4, 3, 3), blank(4, 3, 3)
    truth[1, 1, 1] = prediction[2, 1, 1] = True
    found = [surface_dice(prediction, truth, spacing=(2.0, 1.0, 1.0), tolerance=mm) for mm in (0.0, 1.9, 2.0)]
    assert found == pytest.approx([0.5, 0.5, 1.0])


def test_surface_elements_count_by_their_area() -> None:
    """A plate of 20 x 20 voxels in one layer, and one of two layers; voxels are 1 x 1 x 5 mm.

    Elements lie in layers between voxels: the lowest is the same for both; the middle one is the top of the truth, but
    only the sides of the prediction; the highest is the prediction's top, 5 mm away.
    """
    truth, prediction = blank(22, 22, 4), blank(22, 22, 4)
    truth[1:21, 1:21, 1] = prediction[1:21, 1:21, 1:3] = True
    face = 19 * 19 * 1.0
    rim = 4 * 19 * math.hypot(5, 1) / 2 + 4 * math.sqrt(5**2 + 5**2 + 1**2) / 8  # edges and corners of a plate
    sides = 4 * 19 * 5.0 + 4 * math.hypot(5, 5) / 2
    within = (face + rim) + rim + (face + rim) + sides
    expected = within / (2 * (face + rim) + 2 * (face + rim) + sides)
    found = surface_dice(prediction, truth, spacing=(1.0, 1.0, 5.0), tolerance=0.0)
    assert found == pytest.approx(expected, rel=1e-6)
    assert found != pytest.approx((2 * 361 + 3 * 80 + 80) / (4 * 361 + 4 * 80 + 80), abs=0.02)  # counted elements
    assert surface_dice(prediction, truth, spacing=(1.0, 1.0, 5.0), tolerance=5.0) == pytest.approx(1.0)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equal_to_monai(spacing: tuple[float, float, float], seed: int) -> None:
    prediction, truth = blobs(seed)
    expected = monai(prediction, truth, spacing=spacing, tolerance=1.0)
    distances = voxel_distances(prediction, truth, spacing=spacing)
    share = surface_dice(prediction, truth, spacing=spacing, tolerance=1.0)
    assert [distances.hd95, distances.assd, share] == pytest.approx(expected, rel=1e-5)
    assert 0.05 < share < 0.999


@pytest.mark.parametrize("seed", [0, 1])
def test_surface_voxels_are_those_that_an_erosion_takes(seed: int) -> None:
    mask, _ = blobs(seed)
    assert np.array_equal(surface_voxels(mask), mask & ~binary_erosion(mask))


def test_rounding_does_not_decide_what_is_within_the_tolerance() -> None:
    truth, prediction = blank(24, 3, 3), blank(24, 3, 3)
    truth[1, 1, 1] = prediction[21, 1, 1] = True
    step = float(np.float32(0.1))  # 20 of them are 2.00000003 mm
    assert 19 * step + step > 2.0
    far = surface_dice(prediction, truth, spacing=(step, 1.0, 1.0), tolerance=2.0)
    assert far == pytest.approx(1.0)


def test_surfaces_are_measured_where_denormal_numbers_are_flushed() -> None:
    """As in the process of a run on one device: scipy's KDTree overflows the stack there."""
    mask = np.zeros((60, 60, 60), bool)
    mask[:55, :55, :55] = True  # from 0 on: there the tree splits at the number next to 0
    with denormals(flushed=True):
        assert voxel_distances(mask, mask, spacing=(1, 1, 1)).hd95 == 0

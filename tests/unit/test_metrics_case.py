"""All metrics of a case: counts by hand, the rules for what is not there, and boxes that change nothing."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lampseg.evaluation import METRICS, dice_per_class, score_case
from lampseg.evaluation.metrics.case_scores import ClassScores
from lampseg.evaluation.metrics.surfaces import surface_dice, voxel_distances

Labels = NDArray[np.uint8]
SPACING = (0.5, 2.0, 4.0)  # 4 mm3 a voxel


def score(prediction: Labels, truth: Labels, *, classes: int = 2, **options: object) -> tuple[ClassScores, ...]:
    options = {"spacing": SPACING, "tolerance_mm": (1.0,) * (classes - 1), **options}
    return score_case(prediction, truth, classes=classes, **options)


def blank(*shape: int) -> Labels:
    return np.zeros(shape or (8, 7, 6), np.uint8)


def test_overlap_and_volume_by_hand() -> None:
    truth, prediction = blank(), blank()
    truth[1:5, 1, 1] = 1  # 4 voxels
    prediction[3:6, 1, 1:3] = 1  # 6, of which 2 are right
    (found,) = score(prediction, truth)
    assert found.presence == "both"
    assert (found.truth_ml, found.predicted_ml) == pytest.approx((0.016, 0.024))
    values = found.values
    assert values["dice"] == pytest.approx(2 * 2 / 10)
    assert values["jaccard"] == pytest.approx(2 / 8)
    assert values["sensitivity"] == pytest.approx(2 / 4)
    assert values["precision"] == pytest.approx(2 / 6)
    assert values["volume_error"] == pytest.approx(0.008)  # too much is positive
    assert values["relative_volume_error"] == pytest.approx(0.5)
    (swapped,) = score(truth, prediction)
    assert swapped.values["volume_error"] == pytest.approx(-0.008)
    assert swapped.values["relative_volume_error"] == pytest.approx(-1 / 3)


def test_a_perfect_prediction() -> None:
    truth = blank()
    truth[2:5, 2:5, 1:4] = 1
    (found,) = score(truth, truth)
    assert found.values == {name: 0.0 if METRICS[name].better != "higher" else 1.0 for name in METRICS}


def test_in_neither_map_nothing_is_said() -> None:
    (found,) = score(blank(), blank())
    assert found == ClassScores("neither", dict.fromkeys(METRICS), 0.0, 0.0)
    assert not any(found.undefined(metric) for metric in METRICS)


def test_predicted_but_not_there() -> None:
    prediction = blank()
    prediction[0, 0, :3] = 1
    (found,) = score(prediction, blank())
    assert found.presence == "prediction only"
    assert found.values == {
        "dice": 0.0,
        "jaccard": 0.0,
        "sensitivity": None,
        "precision": 0.0,
        "volume_error": pytest.approx(0.012),
        "relative_volume_error": None,
        "hd95": None,
        "assd": None,
        "nsd": 0.0,
    }
    undefined = {metric for metric in METRICS if found.undefined(metric)}
    assert undefined == {"sensitivity", "relative_volume_error", "hd95", "assd"}


def test_there_but_not_predicted() -> None:
    truth = blank()
    truth[0, 0, :3] = 1
    (found,) = score(blank(), truth)
    assert found.presence == "truth only"
    assert found.values == {
        "dice": 0.0,
        "jaccard": 0.0,
        "sensitivity": 0.0,
        "precision": None,
        "volume_error": pytest.approx(-0.012),
        "relative_volume_error": -1.0,
        "hd95": None,
        "assd": None,
        "nsd": 0.0,
    }
    assert {metric for metric in METRICS if found.undefined(metric)} == {"precision", "hd95", "assd"}


def test_not_annotated_is_neither_right_nor_wrong() -> None:
    prediction, truth = blank(), blank()
    prediction[0, 0, :3] = 1
    truth[4, 4, 4], prediction[4, 4, 4] = 2, 2
    first, second = score(prediction, truth, classes=3, annotated=(2,))
    assert first == ClassScores("not annotated", dict.fromkeys(METRICS), None, pytest.approx(0.012))
    assert not any(first.undefined(metric) for metric in METRICS)
    assert second.values["dice"] == 1.0
    assert score(prediction, truth, classes=3)[0].values["dice"] == 0.0


def random_maps(seed: int) -> tuple[Labels, Labels]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 5, (9, 8, 7)).astype(np.uint8)
    return np.where(rng.random(truth.shape) < 0.7, truth, 0).astype(np.uint8), truth


def test_dice_is_that_of_validations() -> None:
    prediction, truth = random_maps(0)
    found = [scores.values["dice"] for scores in score(prediction, truth, classes=5, metrics=("dice",))]
    assert found == pytest.approx(dice_per_class(prediction, truth, classes=5), abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_box_of_a_class_changes_nothing(seed: int) -> None:
    """Compared with the whole masks, and with the maps in the midst of a larger volume."""
    prediction, truth = random_maps(seed)
    prediction[:3], truth[6:] = 0, 0
    found = score(prediction, truth, classes=5)
    for value, scores in enumerate(found, start=1):
        masks = prediction == value, truth == value
        distances = voxel_distances(*masks, spacing=SPACING)
        assert scores.values["hd95"] == pytest.approx(distances.hd95)
        assert scores.values["assd"] == pytest.approx(distances.assd)
        assert scores.values["nsd"] == pytest.approx(surface_dice(*masks, spacing=SPACING, tolerance=1.0))
    larger = [np.pad(labels, ((5, 9), (30, 2), (1, 17))) for labels in (prediction, truth)]
    for scores, other in zip(found, score(*larger, classes=5)):
        assert other.presence == scores.presence
        assert other.values == pytest.approx(scores.values)


def test_only_what_is_asked_for_and_each_class_by_its_own_tolerance() -> None:
    truth = blank(12, 4, 4)
    truth[1, 1, 1], truth[1, 3, 1] = 1, 2
    prediction = np.roll(truth, 4, axis=0)  # 2 mm
    found = score(prediction, truth, classes=3, metrics=("nsd", "dice"), tolerance_mm=(1.0, 2.0))
    assert [list(scores.values) for scores in found] == [["dice", "nsd"]] * 2
    assert [scores.values["nsd"] for scores in found] == pytest.approx([0.0, 1.0])


def test_spacing_belongs_to_the_axes_in_their_order() -> None:
    far = []
    for axis, step in enumerate(SPACING):
        truth, prediction = blank(), blank()
        truth[1, 1, 1] = 1
        prediction[tuple(3 if a == axis else 1 for a in range(3))] = 1
        far.append(score(prediction, truth)[0].values["hd95"])
        assert far[-1] == pytest.approx(2 * step)
    assert len(set(far)) == 3

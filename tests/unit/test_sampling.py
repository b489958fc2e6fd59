"""Which patch is drawn at which step: coverage, determinism, class balance, borders and padding."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lampseg.data import Draw, PreparedCase, Sampler
from lampseg.data.cache import write_array
from lampseg.errors import UserError

Shape = tuple[int, int, int]


def prepared(
    folder: Path, name: str, shape: Shape, organs: Sequence[tuple[Shape, Shape]] = (), *, annotated: Any = None
) -> PreparedCase:
    """A case whose class i is the i-th box of `organs` (corner, size); intensities are the voxel's number + 1."""
    image = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    label = np.zeros(shape, np.uint8)
    for index, (corner, size) in enumerate(organs, 1):
        label[tuple(slice(c, c + s) for c, s in zip(corner, size))] = index
    write_array(folder / f"{name}.image.b2nd", image[None])
    write_array(folder / f"{name}.label.b2nd", label)
    points = {f"class_{i}": np.argwhere(label == i).astype(np.int32) for i in range(1, len(organs) + 1)}
    np.savez(folder / f"{name}.points.npz", allow_pickle=False, **points)
    return PreparedCase(
        id=name,
        image=folder / f"{name}.image.b2nd",
        label=folder / f"{name}.label.b2nd",
        channels=1,
        shape=shape,
        spacing=(1.0, 1.0, 1.0),
        annotated=tuple(range(1, len(organs) + 1)) if annotated is None else annotated,
        voxels=tuple(np.bincount(label.ravel(), minlength=len(organs) + 1).tolist()),
        points=folder / f"{name}.points.npz",
    )


def sampler(cases: Sequence[PreparedCase], **options: Any) -> Sampler:
    defaults: dict[str, Any] = {
        "patch": (8, 8, 8),
        "batch": 2,
        "stride": (4, 4, 4),
        "seed": 0,
        "stage": 0,
        "positive": 1.0,
        "class_balanced": True,
    }
    return Sampler(cases, **(defaults | options))


BIG, SMALL = ((2, 3, 4), (12, 10, 10)), ((25, 20, 3), (2, 2, 2))
"""An organ of 1200 voxels and one of 8."""


def labels_at(drawn: Sampler, draw: Draw) -> set[int]:
    return set(np.unique(drawn.label(draw)).tolist())


@pytest.mark.parametrize(("count", "batch", "steps"), [(5, 2, 3), (4, 2, 2), (3, 8, 1), (1, 1, 1)])
def test_every_epoch_visits_every_case(tmp_path: Path, count: int, batch: int, steps: int) -> None:
    cases = [prepared(tmp_path, f"c{i}", (9, 9, 9)) for i in range(count)]
    drawn = sampler(cases, batch=batch)
    assert drawn.steps_per_epoch == steps
    orders = []
    for epoch in range(6):
        order = [d.case for s in range(steps) for d in drawn.draws(epoch * steps + s)]
        assert len(order) == steps * batch
        assert set(order[:count]) == set(range(count)) if batch <= count else set(order) == set(range(count))
        visits = Counter(order).values()
        assert max(visits) - min(visits) <= 1
        orders.append(tuple(order))
    assert count == 1 or len(set(orders)) > 1


def test_draws_depend_on_seed_stage_and_step_only(tmp_path: Path) -> None:
    cases = [prepared(tmp_path, f"c{i}", (40, 30, 20), [BIG, SMALL]) for i in range(3)]
    forward = [sampler(cases).draws(step) for step in range(20)]
    resumed = sampler(cases)
    assert [resumed.draws(step) for step in reversed(range(20))] == forward[::-1]
    for other in ({"seed": 1}, {"stage": 1}):
        assert [sampler(cases, **other).draws(step) for step in range(20)] != forward
    assert len({draw.corner for batch in forward for draw in batch}) > 30
    assert all(batch[0] != batch[1] for batch in forward)


def test_positive_patches_hold_foreground(tmp_path: Path) -> None:
    case = prepared(tmp_path, "a", (60, 60, 60), [((50, 51, 52), (2, 2, 2))])
    for step in range(40):
        for draw in sampler([case]).draws(step):
            assert draw.size == (8, 8, 8)
            assert 1 in labels_at(sampler([case]), draw)
    corners = {draw.corner for step in range(40) for draw in sampler([case]).draws(step)}
    assert len(corners) > 20  # the organ is not always at the patch's centre


def test_the_fraction_of_positive_patches(tmp_path: Path) -> None:
    case = prepared(tmp_path, "a", (60, 60, 60), [((10, 10, 10), (2, 2, 2))])
    drawn = sampler([case], positive=0.3, batch=100)
    hits = [1 in labels_at(drawn, draw) for step in range(6) for draw in drawn.draws(step)]
    assert 0.23 < np.mean(hits) < 0.37
    none = sampler([case], positive=0.0, batch=100)
    assert np.mean([1 in labels_at(none, draw) for draw in none.draws(0)]) < 0.1


def test_class_balance(tmp_path: Path) -> None:
    """Boxes far apart, so that a patch holds the one organ or the other; the third class is not in this case."""
    case = prepared(tmp_path, "a", (40, 30, 20), [BIG, SMALL, ((0, 0, 0), (0, 0, 0))])

    def share_of_small(balanced: bool) -> float:
        drawn = sampler([case], class_balanced=balanced, batch=600, patch=(4, 4, 4))
        return float(np.mean([2 in labels_at(drawn, draw) for draw in drawn.draws(0)]))

    assert 0.44 < share_of_small(True) < 0.56
    assert share_of_small(False) < 0.03  # 8 of 1208 voxels


def test_cases_without_foreground_give_uniform_patches(tmp_path: Path) -> None:
    drawn = sampler([prepared(tmp_path, "a", (12, 12, 12), [((0, 0, 0), (0, 0, 0))])], batch=500)
    corners = np.array([draw.corner for draw in drawn.draws(0)])
    assert (corners.min(), corners.max()) == (0, 4)
    np.testing.assert_allclose([np.mean(corners[:, 0] == i) for i in range(5)], 0.2, atol=0.07)


def test_patches_stay_inside_larger_volumes(tmp_path: Path) -> None:
    case = prepared(tmp_path, "a", (20, 9, 8), [((0, 0, 0), (1, 1, 1)), ((19, 8, 7), (1, 1, 1))])
    drawn = sampler([case], batch=100)
    for draw in drawn.draws(0):
        assert all(0 <= c <= n - 8 for c, n in zip(draw.corner, case.shape))
        assert drawn.valid(draw).all()
        assert labels_at(drawn, draw) & {1, 2}


def test_smaller_volumes_are_padded_on_both_sides(tmp_path: Path) -> None:
    cases = [
        prepared(tmp_path, "big", (8, 8, 8), [BIG]),
        prepared(tmp_path, "thin", (20, 5, 8), [((3, 1, 2), (4, 3, 3))]),
    ]
    drawn = sampler(cases)
    draw = next(d for d in drawn.draws(0) if d.case == 1)
    assert draw.corner[1:] == (-1, 0)
    image, label, valid = drawn.image(draw), drawn.label(draw), drawn.valid(draw)
    assert image.shape == (1, 8, 8, 8)
    assert image.dtype == np.float32
    assert label.shape == (8, 8, 8)
    assert label.dtype == np.int64
    x = draw.corner[0]
    np.testing.assert_array_equal(image[0, :, 1:6], cases[1].image_part()[0, x : x + 8])
    np.testing.assert_array_equal(label[:, 1:6], cases[1].label_part()[x : x + 8])
    np.testing.assert_array_equal(valid, np.broadcast_to(np.isin(np.arange(8), range(1, 6))[:, None], (8, 8, 8)))
    np.testing.assert_array_equal(image[0] > 0, valid)
    assert not label[~valid].any()


def test_whole_volumes_are_padded_at_their_ends(tmp_path: Path) -> None:
    case = prepared(tmp_path, "a", (9, 8, 5), [((1, 1, 1), (3, 3, 3))])
    drawn = sampler([case], patch=None, batch=1, stride=(4, 4, 2))
    (draw,) = drawn.draws(3)
    assert draw == Draw(0, (0, 0, 0), (12, 8, 6))
    np.testing.assert_array_equal(drawn.image(draw)[0, :9, :8, :5], case.image_part()[0])
    np.testing.assert_array_equal(drawn.image(draw)[0] > 0, drawn.valid(draw))
    assert drawn.valid(draw).sum() == 9 * 8 * 5
    assert drawn.label(draw).sum() == 27


def test_annotated_classes(tmp_path: Path) -> None:
    case = prepared(tmp_path, "a", (9, 9, 9), [BIG, SMALL, SMALL], annotated=(1, 3))
    drawn = sampler([case], batch=1)
    assert drawn.annotated(drawn.draws(0)[0]).tolist() == [True, True, False, True]


def test_a_patch_larger_than_every_volume_is_refused(tmp_path: Path) -> None:
    cases = [prepared(tmp_path, "a", (30, 9, 9)), prepared(tmp_path, "b", (20, 10, 9))]
    sampler(cases, patch=(30, 10, 9))  # larger than some volumes is fine
    with pytest.raises(
        UserError, match=r"patch 30x11x9 is larger than every volume along Y .*b, 20x10x9.*smaller patch"
    ):
        sampler(cases, patch=(30, 11, 9))


def test_no_cases_are_refused() -> None:
    with pytest.raises(UserError, match="no case to draw from"):
        sampler([])

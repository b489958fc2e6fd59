"""Augmentation: each transform is what it says, the same in parts as in the whole, and drawn from the seed alone."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from lampseg.config import parse_config
from lampseg.config_augmentation import AugmentationConfig
from lampseg.data import Draw, PreparedCase, Sampler
from lampseg.data.augmentation import Change, check_sides, draw_change, side_pairs
from lampseg.data.augmentation.elastic import Elastic
from lampseg.data.augmentation.noise import Noise
from lampseg.data.augmentation.turn import Turn
from lampseg.data.augmentation.warp import SAME, Warp
from lampseg.data.boxes import box_image, box_label, box_padded, box_valid
from lampseg.data.cache import write_array
from lampseg.errors import UserError

Triple = tuple[int, int, int]
SHAPE = (40, 36, 28)


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> PreparedCase:
    """Three channels, which hold each voxel's X, Y and Z + 1; labels at random."""
    folder = tmp_path_factory.mktemp("case")
    image = (np.indices(SHAPE) + 1).astype(np.float32)
    label = np.random.default_rng(0).integers(0, 5, SHAPE).astype(np.uint8)
    write_array(folder / "image.b2nd", image)
    write_array(folder / "label.b2nd", label)
    np.savez(folder / "points.npz", **{f"class_{c}": np.argwhere(label == c).astype(np.int32) for c in range(1, 5)})
    return PreparedCase(
        id="a",
        image=folder / "image.b2nd",
        label=folder / "label.b2nd",
        channels=3,
        shape=SHAPE,
        spacing=(1.0, 1.0, 1.0),
        annotated=(1, 2, 3),
        voxels=tuple(np.bincount(label.ravel(), minlength=5).tolist()),
        points=folder / "points.npz",
    )


def sampler(case: PreparedCase, augmentation: Any, **options: Any) -> Sampler:
    defaults: dict[str, Any] = {
        "patch": (16, 16, 12),
        "batch": 2,
        "stride": (4, 4, 4),
        "seed": 0,
        "stage": 0,
        "positive": 0.0,
        "class_balanced": True,
    }
    config = AugmentationConfig.model_validate(augmentation)
    return Sampler([case], **(defaults | options), augmentation=config)


TURNS = [(flips, quarters) for flips in itertools.product((False, True), repeat=3) for quarters in range(4)]


@pytest.mark.parametrize(("flips", "quarters"), TURNS)
def test_turns_are_numpys(flips: tuple[bool, bool, bool], quarters: int) -> None:
    array = np.random.default_rng(0).random((2, 4, 5, 6))
    wanted = np.rot90(np.flip(array, [1 + axis for axis in range(3) if flips[axis]]), quarters, axes=(1, 2))
    turn = Turn.of(flips=flips, quarters=quarters)
    np.testing.assert_array_equal(turn(array), wanted)
    assert turn.size((4, 5, 6)) == wanted.shape[1:]
    assert turn.mirrors == (sum(flips) % 2 == 1)
    region = (slice(1, 3), slice(0, 2), slice(2, 6))
    part = array[(slice(None), *turn.source(region, (4, 5, 6)))]
    np.testing.assert_array_equal(turn(part), wanted[(slice(None), *region)])


BENT = Warp(((1.1, 0.1, -0.2), (0.15, 0.9, 0.1), (0.0, -0.1, 1.05)), (1.3, -2.2, 0.7))
CURVED = Warp(SAME, (0.0, 0.0, 0.0), Elastic(4.0, 40.0, (1, 2)))
CHANGES = {
    "flip": Change(turn=Turn.of(flips=(True, False, True), quarters=0)),
    "turn": Change(turn=Turn.of(flips=(False, True, False), quarters=1)),
    "noise": Change(noise=Noise(-0.2, 0.2, (7,))),
    "affine": Change(warp=BENT),
    "elastic": Change(warp=CURVED),
    "all": Change(
        Warp(BENT.matrix, BENT.shift, CURVED.elastic), Turn.of(flips=(True, True, True), quarters=3), Noise(0, 1, (3,))
    ),
}
BOXES = {"inside": Draw(0, (5, 6, 4), (20, 20, 12)), "over the border": Draw(0, (-3, 20, 20), (24, 24, 12))}
CUTS = [(0, 9), (0, 4, 12), (0, 2, 3)]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("box", BOXES)
@pytest.mark.parametrize("block", [100, 10**6])
def test_parts_make_up_the_whole(change: str, box: str, block: int, case: PreparedCase, monkeypatch: Any) -> None:
    """Bit for bit, in slabs along every axis, whichever planes are computed at a time."""
    draw = Draw(0, BOXES[box].corner, BOXES[box].size, CHANGES[change])
    whole = [read(case, draw) for read in (box_image, box_label, box_valid)]
    monkeypatch.setattr("lampseg.data.augmentation.warp._BLOCK", block)
    spans = [[slice(a, b) for a, b in itertools.pairwise((*cut, size))] for cut, size in zip(CUTS, draw.size)]
    for region in itertools.product(*spans):
        part = draw.part(region)
        for read, array in zip((box_image, box_label, box_valid), whole):
            found = read(case, part)  # type: ignore[operator]
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array[(..., *region)])
    assert whole[0].shape == (3, *draw.size)
    assert box_padded(case, draw) or whole[2].all()
    if change != "noise" and box == "inside":
        assert (whole[0] != box_image(case, BOXES[box])).any()


@pytest.mark.parametrize("change", ["affine", "elastic", "all"])
@pytest.mark.parametrize("box", BOXES)
def test_image_label_and_mask_come_from_one_place(change: str, box: str, case: PreparedCase) -> None:
    """The image holds the places: the labels are those of the nearest voxel, the padding is 0 in both."""
    silent = Change(CHANGES[change].warp, CHANGES[change].turn)
    draw = Draw(0, BOXES[box].corner, BOXES[box].size, silent)
    image, label, valid = box_image(case, draw), box_label(case, draw), box_valid(case, draw)
    assert not image[:, ~valid].any()
    assert not label[~valid].any()
    places = image[:, valid].astype(np.float64) - 1
    near = np.abs(places - np.floor(places) - 0.5).min(0) > 1e-4  # halves may round either way in float32
    x, y, z = np.rint(places[:, near]).astype(int)
    np.testing.assert_array_equal(label[valid][near], case.label_part()[x, y, z])
    assert near.mean() > 0.8
    assert valid.any()
    assert valid.all() == (box == "inside")


def test_the_places_of_an_affine_map(case: PreparedCase) -> None:
    draw = Draw(0, (8, 7, 6), (16, 14, 12), Change(warp=BENT))
    p = np.moveaxis(np.indices(draw.size), 0, -1) - (np.array(draw.size) - 1) / 2
    exact = BENT.places((slice(0, 16), slice(0, 14), slice(0, 12)), draw.size, draw.corner) * 65536
    np.testing.assert_array_equal(exact, np.rint(exact))  # so that they are exact from any other origin, too
    wanted = p @ np.array(BENT.matrix).T + (np.array(draw.size) - 1) / 2 + BENT.shift + draw.corner
    valid = box_valid(case, draw)
    np.testing.assert_allclose(np.moveaxis(box_image(case, draw), 0, -1)[valid], wanted[valid] + 1, atol=1e-4)
    assert valid.all()


def test_a_shift_by_whole_voxels_reads_beyond_the_box_and_pads_beyond_the_volume(case: PreparedCase) -> None:
    shifted = Draw(0, (0, 0, 0), (12, 12, 12), Change(warp=Warp(SAME, (-4.0, 3.0, 0.0))))
    plain = Draw(0, (-4, 3, 0), (12, 12, 12))
    for read in (box_image, box_label, box_valid):
        np.testing.assert_array_equal(read(case, shifted), read(case, plain))  # type: ignore[operator]
    assert box_padded(case, shifted)
    assert not box_padded(case, Draw(0, (10, 10, 10), (8, 8, 8), shifted.change))
    away = Draw(0, (0, 0, 0), (8, 8, 8), Change(warp=Warp(SAME, (100.0, 0.0, 0.0))))
    assert not box_image(case, away).any()
    assert not box_valid(case, away).any()
    assert box_label(case, away).shape == (8, 8, 8)


def test_only_what_a_warp_reaches_is_read(case: PreparedCase, monkeypatch: Any) -> None:
    read: list[Any] = []
    original = PreparedCase.image_part

    def noted(self: PreparedCase, region: Any = None) -> Any:
        read.append(region)
        return original(self, region)

    monkeypatch.setattr(PreparedCase, "image_part", noted)
    box_image(case, Draw(0, (20, 8, 8), (8, 8, 8), Change(warp=BENT)).part((slice(0, 4), slice(0, 8), slice(0, 8))))
    (region,) = read
    assert region[0].start > 12
    assert all(part.stop - part.start < 18 for part in region)


def test_elastic_displacements_are_filtered_white_noise() -> None:
    """Deviation and correlation of the same field made the long way, voxel by voxel."""
    sigma, magnitude, size = 6.0, 300.0, (72, 72, 72)
    box = tuple(slice(0, edge) for edge in size)
    ours = np.concatenate([Elastic(sigma, magnitude, (seed,)).field(box, size) for seed in range(3)])
    noise = np.random.default_rng(0).uniform(-1, 1, (6, *size))
    plain = magnitude * ndimage.gaussian_filter(noise, (0, sigma, sigma, sigma), mode="wrap")
    theory = magnitude * np.sqrt(1 / 3) / (2 * np.sqrt(np.pi) * sigma) ** 1.5
    assert plain.std() == pytest.approx(theory, rel=0.1)
    assert ours.std() == pytest.approx(theory, rel=0.1)
    for distance in (3, 6, 12):
        near, far = ours[:, :-distance], ours[:, distance:]
        found = (near * far).mean() / (ours**2).mean()
        assert found == pytest.approx(np.exp(-(distance**2) / (4 * sigma**2)), abs=0.08)
    assert np.abs(ours).max() <= max(Elastic(sigma, magnitude, (seed,)).bound(size).max() for seed in range(3))


def test_noise_is_uniform_and_leaves_the_padding_alone(case: PreparedCase) -> None:
    draw = Draw(0, (-10, 0, 0), (40, 36, 28), Change(noise=Noise(-0.2, 0.2, (1,))))
    added = box_image(case, draw) - box_image(case, Draw(0, draw.corner, draw.size))
    valid = box_valid(case, draw)
    assert not added[:, ~valid].any()
    inner = added[:, valid]
    assert (inner.min(), inner.max()) == pytest.approx((-0.2, 0.2), abs=1e-3)
    assert inner.mean() == pytest.approx(0, abs=2e-3)
    assert inner.std() == pytest.approx(0.4 / np.sqrt(12), rel=0.02)
    assert abs(np.corrcoef(inner[0], inner[1])[0, 1]) < 0.02
    assert len(np.unique(added[0, 10:, 0, 0])) == 30, "no two planes have the same noise"


def test_liver_is_the_papers(case: PreparedCase) -> None:
    """Flips along X and Y and quarter turns with probability 0.1 each, noise always; no flip along Z."""
    drawn = sampler(case, "liver", batch=4000, patch=(16, 16, 12)).draws(0)
    changes = [draw.change for draw in drawn]
    assert all(change is not None and change.noise is not None and change.warp is None for change in changes)
    turns = [change.turn for change in changes if change is not None]
    assert not any(turn.backwards[2] for turn in turns)
    assert np.mean([turn.mirrors for turn in turns]) == pytest.approx(2 * 0.1 * 0.9, abs=0.02)
    assert np.mean([turn.axes != (0, 1, 2) for turn in turns]) == pytest.approx(0.1 * 2 / 3, abs=0.015)
    assert np.mean([turn == Turn() for turn in turns]) == pytest.approx(0.9**3 + 0.1**3 / 3, abs=0.025)
    assert {change.noise.low for change in changes if change is not None and change.noise is not None} == {-0.2}


def test_han_is_the_papers_released_script(case: PreparedCase) -> None:
    drawn = sampler(case, "han", batch=1500, patch=(20, 20, 20)).draws(0)
    warps = [draw.change.warp for draw in drawn if draw.change is not None]
    assert len(warps) / 1500 == pytest.approx(0.8, abs=0.03)
    fields = [warp.elastic for warp in warps if warp is not None and warp.elastic is not None]
    assert len(fields) == len(warps), "with an affine map comes a displacement"
    assert all(10 <= field.sigma <= 50 and 600 <= field.magnitude <= 1200 for field in fields)
    matrices = np.array([warp.matrix for warp in warps if warp is not None])
    sizes = np.linalg.norm(matrices[:, :, 0], axis=1)  # the first column: rotated, sheared along one axis, scaled
    assert 0.8 <= sizes.min() < 0.83
    assert 1.17 < sizes.max() <= 1.2 * np.hypot(1, np.tan(np.radians(10)))
    shifts = np.array([warp.shift for warp in warps if warp is not None])
    assert 0.9 < np.abs(shifts).max() < 0.05 * 20 * 1.5
    determinants = np.linalg.det(matrices)
    assert determinants.min() > 0.5, "nothing is mirrored"


def test_rotations_reach_their_angle(case: PreparedCase) -> None:
    only = {"affine": {"scale": 0, "shear_degrees": 0, "shift_fraction": 0, "probability": 1}}
    drawn = sampler(case, only, batch=500).draws(0)
    matrices = np.array([draw.change.warp.matrix for draw in drawn if draw.change and draw.change.warp])
    np.testing.assert_allclose(
        matrices @ matrices.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (500, 3, 3)), atol=1e-12
    )
    angles = np.degrees(np.arccos((np.trace(matrices, axis1=1, axis2=2) - 1) / 2))
    assert 18 < angles.max() < 15 * np.sqrt(3) + 1


def test_changes_depend_on_seed_stage_step_and_position_only(case: PreparedCase) -> None:
    forward = [sampler(case, "han").draws(step) for step in range(5)]
    again = sampler(case, "han")
    assert [again.draws(step) for step in reversed(range(5))] == forward[::-1]
    changes = [draw.change for batch in forward for draw in batch]
    assert len({repr(change) for change in changes if change is not None}) == sum(c is not None for c in changes) > 4
    for other in ({"seed": 1}, {"stage": 1}):
        assert [draw.change for draw in sampler(case, "han", **other).draws(0)] != changes[:2]
    plain = sampler(case, "none").draws(0)
    assert [(draw.case, draw.corner, draw.change) for draw in plain] == [(d.case, d.corner, None) for d in forward[0]]
    np.testing.assert_array_equal(again.image(forward[1][0]), sampler(case, "han").image(forward[1][0]))


def test_one_transform_leaves_the_numbers_of_another_alone() -> None:
    some = AugmentationConfig.model_validate({"flip": {"probability": 0.5}, "affine": {}})
    more = AugmentationConfig.model_validate(
        {"flip": {"probability": 0.5}, "affine": {}, "noise": {}, "rotate90": {"probability": 0}, "elastic": {}}
    )
    for step in range(20):
        one, two = (draw_change(config, (0, step), size=(8, 8, 8)) or Change() for config in (some, more))
        assert one.turn == two.turn
        assert (one.warp and one.warp.matrix) == (two.warp and two.warp.matrix)


@pytest.mark.parametrize(("size", "quarters"), [((8, 8, 4), {1, 2, 3}), ((8, 4, 8), {2})])
def test_boxes_keep_their_shape(size: Triple, quarters: set[int], case: PreparedCase) -> None:
    """A quarter turn of a box of two sizes would be another shape than the plan is made for."""
    config = AugmentationConfig.model_validate({"rotate90": {"probability": 1}})
    turns = {draw_change(config, (step,), size=size).turn for step in range(60)}  # type: ignore[union-attr]
    assert turns == {Turn.of(flips=(False,) * 3, quarters=count) for count in quarters}
    whole = sampler(case, {"rotate90": {"probability": 1}}, patch=None, batch=1)
    for step in range(5):
        (draw,) = whole.draws(step)
        assert whole.image(draw).shape == (3, 40, 36, 28)
        np.testing.assert_array_equal(whole.image(draw), case.image_part()[:, ::-1, ::-1])
        assert not whole.padded(draw)


NAMES = ("background", "BrainStem", "OpticNerve_L", "OpticNerve_R", "left lung")


def test_which_classes_are_pairs() -> None:
    assert side_pairs(NAMES) == ((2, 3),)
    assert side_pairs(("background", "right-kidney", "left-kidney", "Kidney", "L")) == ((2, 1),)
    assert side_pairs(("background", "liver", "cancer")) == ()
    assert side_pairs(("bg", "femur_l", "femur_r", "Lung_Left", "Lung_Right")) == ((1, 2), (3, 4))


def test_flips_of_pairs_are_refused_unless_swapped() -> None:
    def check(tree: Any, classes: tuple[str, ...] = NAMES) -> None:
        check_sides(AugmentationConfig.model_validate(tree), classes)

    for tree in ({"flip": {}}, "liver", {"flip": {"axes": ["z"]}}):
        with pytest.raises(UserError, match=r"augmentation\.flip: .*OpticNerve_L.*not OpticNerve_R; set .*swap_pairs"):
            check(tree)
        check(tree, ("background", "liver", "cancer"))
    for tree in ("han", "none", {"flip": {"swap_pairs": True}}, {"rotate90": {}}, {"flip": {"probability": 0}}):
        check(tree)


def test_a_mirrored_box_has_left_and_right_exchanged(case: PreparedCase) -> None:
    """Class 2 is the left one, class 3 the right one; only 1, 2 and 3 are annotated, then only 1 and 3."""
    drawn = sampler(case, {"flip": {"axes": ["x"], "probability": 1, "swap_pairs": True}}, pairs=((3, 4),))
    (draw, _) = drawn.draws(0)
    plain = Draw(0, draw.corner, draw.size)
    names = np.array([0, 1, 2, 4, 3])
    np.testing.assert_array_equal(drawn.label(draw), names[box_label(case, plain)][::-1])
    assert drawn.label(draw).dtype == np.int64
    assert drawn.annotated(draw).tolist() == [True, True, True, False, True], "what is known of the right, of the left"
    twice = Draw(0, draw.corner, draw.size, Change(turn=Turn.of(flips=(True, True, False), quarters=1)))
    np.testing.assert_array_equal(np.bincount(drawn.label(twice).ravel()), np.bincount(box_label(case, plain).ravel()))
    assert drawn.annotated(twice).tolist() == [True, True, True, True, False]


def test_the_names_in_a_configuration() -> None:
    tree: dict[str, Any] = {"data": {"root": "x"}, "curriculum": [{"patch": 8, "steps": 1}]}
    named = parse_config({**tree, "augmentation": "liver"})
    spelt = {
        "flip": {"axes": ["x", "y"], "probability": 0.1},
        "rotate90": {"probability": 0.1},
        "noise": {"low": -0.2, "high": 0.2, "probability": 1},
    }
    assert named == parse_config({**tree, "augmentation": spelt})
    assert not parse_config(tree).augmentation.used
    assert (
        parse_config({**tree, "augmentation": "none"})
        == parse_config(tree)
        == parse_config({**tree, "augmentation": None})
    )

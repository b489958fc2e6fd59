"""The phantom dataset: real proportions, left and right alike up close, random poses, missing annotations."""

import json
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lampseg.data import Dataset, PhantomScan, phantom_scan, read_dataset, read_label, read_volume, write_phantom
from lampseg.data.formats.organs import ORGANS
from lampseg.data.phantom.anatomy import AIR, head
from lampseg.data.phantom.shapes import Box, Ellipsoid, Grown, Posed, Tube
from lampseg.errors import UserError

PAIRED = {"OpticNerve": (25, 57, 2), "Parotid": (56, -4, -42), "Submandibular": (27, 32, -84)}
"""Where the right one lies in the head, in mm."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_phantom(tmp_path_factory.mktemp("data") / "phantom", cases=8, test=2, seed=3)


@pytest.fixture(scope="module")
def scans() -> list[PhantomScan]:
    return [phantom_scan(np.random.default_rng(seed)) for seed in range(6)]


def test_it_is_read_like_any_msd_folder(dataset: Dataset) -> None:
    assert dataset == read_dataset(dataset.root, format="msd")
    assert dataset.classes == ("background", *ORGANS)
    assert (len(dataset.training), len(dataset.test)) == (8, 2)
    assert sorted(p.name for p in dataset.root.iterdir()) == [
        "dataset.json",
        "imagesTr",
        "imagesTs",
        "labelsTr",
        "labelsTs",
    ]


def test_scans_are_ct_like_and_differ_in_shape_and_orientation(dataset: Dataset) -> None:
    shapes, orientations = set(), set()
    for case in dataset.training + dataset.test:
        assert case.label is not None
        assert nib.load(case.image).get_data_dtype() == np.int16
        volume = read_volume(case.image)
        read_label(case.label, classes=10, like=volume)
        shapes.add(volume.shape)
        orientations.add(nib.aff2axcodes(volume.affine))
        assert all(54 <= side <= 74 for side in volume.shape)
        np.testing.assert_allclose(volume.spacing, 4)
        assert np.percentile(volume.array, 5) == pytest.approx(AIR, abs=80)
        assert volume.array.max() > 600
    assert len(shapes) > 5
    assert len(orientations) > 1


def test_a_quarter_of_the_training_cases_lack_one_or_two_annotations(dataset: Dataset) -> None:
    lacking = [case for case in dataset.training if case.annotated is not None]
    assert len(lacking) == 2
    assert all(case.annotated is None for case in dataset.test)
    for case in dataset.training + dataset.test:
        assert case.label is not None
        drawn = set(np.unique(read_label(case.label, classes=10)).tolist()) - {0}
        assert drawn == set(case.annotated or range(1, 10))
        assert len(drawn) >= 7


def test_organs_have_real_proportions(scans: list[PhantomScan]) -> None:
    counts = np.array([np.bincount(scan.label.ravel(), minlength=10) for scan in scans])
    volumes = dict(zip(("background", *ORGANS), np.median(counts, axis=0) * 0.064))  # cm^3
    assert volumes["Mandible"] > volumes["BrainStem"] > volumes["Submandibular_L"] > volumes["Chiasm"]
    assert 15 < volumes["BrainStem"] < 35
    assert 50 < volumes["Mandible"] < 110
    for side in "LR":
        assert 15 < volumes[f"Parotid_{side}"] < 35
        assert 4 < volumes[f"Submandibular_{side}"] < 12
        assert volumes[f"OpticNerve_{side}"] < 4
    assert counts[:, [2, 4, 5]].min() >= 15  # the tiny ones are still there to be found


def test_soft_tissue_contrast_is_low_against_noise(scans: list[PhantomScan]) -> None:
    scan = scans[1]
    values = [scan.image[scan.label == i].astype(float) for i in (1, 6, 7, 8, 9)]
    assert all(18 < v.std() < 90 for v in values)
    means = [np.median(v) for v in values]
    assert max(means) - min(means) < 60


def paint(points: Any, seed: int) -> Any:
    """Window-clipped HU at head coordinates (3, X, Y, Z), without noise."""
    values = np.full(points.shape[1:], AIR, np.float32)
    for tissue in head(np.random.default_rng(seed)):
        values[tissue.shape.distance(points) < 0] = tissue.hounsfield
    return values.clip(-160, 240)


@pytest.mark.parametrize("organ", PAIRED)
def test_left_and_right_look_alike_up_close_and_not_from_afar(organ: str) -> None:
    x, y, z = PAIRED[organ]

    def difference(radius: int) -> float:
        grid = np.arange(-radius, radius + 1, 4, dtype=np.float32)
        ball = np.stack(np.meshgrid(grid, grid, grid, indexing="ij"))
        inside = (ball**2).sum(0) <= radius**2
        sides = [np.array([side * x, y, z], np.float32)[:, None, None, None] for side in (-1, 1)]
        return float(
            np.mean([np.abs(paint(ball + sides[0], s) - paint(ball + sides[1], s))[inside].mean() for s in range(4)])
        )

    assert difference(12) < 25  # less than the noise
    assert difference(32) < 110  # air or bone lies on either side
    assert difference(48) > 80


def test_the_right_organ_lies_to_the_right_and_the_head_is_upright(scans: list[PhantomScan]) -> None:
    for scan in scans:
        middle = {name: np.argwhere(scan.label == i).mean(0) @ scan.affine[:3, :3] for i, name in enumerate(ORGANS, 1)}
        for pair in PAIRED:
            assert middle[f"{pair}_R"][0] > middle[f"{pair}_L"][0] + 20  # RAS: x grows to the patient's right
        assert middle["Mandible"][1] > middle["BrainStem"][1] + 20
        assert middle["Chiasm"][2] > middle["Submandibular_L"][2] + 40


def test_position_in_the_array_does_not_tell_the_organ(scans: list[PhantomScan]) -> None:
    """Shift, turn and crop move an organ by about its own size from case to case."""
    places = np.array([np.argwhere(scan.label == 8).mean(0) * 4 for scan in scans])
    assert (places.std(0) > 10).all()  # mm; the gland is 18 to 30 mm long


def test_cases_depend_on_the_seed_and_their_number_only(tmp_path: Path, dataset: Dataset) -> None:
    again = write_phantom(tmp_path / "again", cases=2, test=1, seed=3)
    for one, two in ((dataset.training[1], again.training[1]), (dataset.test[0], again.test[0])):
        np.testing.assert_array_equal(read_volume(one.image).array, read_volume(two.image).array)
    other = write_phantom(tmp_path / "other", cases=1, seed=4)
    assert read_volume(other.training[0].image).array.shape != read_volume(again.training[0].image).array.shape


def test_spacing_changes_the_sampling_and_not_the_head(scans: list[PhantomScan]) -> None:
    fine = phantom_scan(np.random.default_rng(2), spacing=3)
    assert np.count_nonzero(fine.label == 3) * 3**3 == pytest.approx(
        np.count_nonzero(scans[2].label == 3) * 4**3, rel=0.15
    )


def test_a_case_is_made_quickly() -> None:
    start = time.perf_counter()
    for seed in range(3):
        phantom_scan(np.random.default_rng(seed))
    assert time.perf_counter() - start < 6  # about 0.3 s each on an idle core


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cases": 0, "seed": 0}, "0 cases"),
        ({"cases": 1, "seed": 0, "test": -1}, "-1 test cases"),
        ({"cases": 1, "seed": -1}, "seed -1"),
        ({"cases": 1, "seed": 0, "spacing": 9.0}, "spacing 9.0 mm; choose 1 to 5"),
    ],
)
def test_impossible_requests(tmp_path: Path, options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write_phantom(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match="is not an empty folder"):
            write_phantom(out, cases=1, seed=0)
    with pytest.raises(UserError, match="cannot be written"):
        write_phantom(tmp_path / "notes.txt" / "deeper", cases=1, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_interrupted_run_does_not_look_finished(tmp_path: Path, monkeypatch: Any) -> None:
    def stop(*_: Any, **__: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(json, "dumps", stop)
    with pytest.raises(KeyboardInterrupt):
        write_phantom(tmp_path / "out", cases=1, seed=0)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_shapes_measure_distances() -> None:
    points = np.array([[10.0, 0, 0], [0, 0, 0], [0, 0, 7]], np.float32).T[:, :, None, None]

    def distances(shape: Any) -> list[float]:
        return [round(float(d), 4) for d in shape.distance(points).ravel()]

    ball = Ellipsoid((0, 0, 0), (4, 4, 4))
    assert distances(ball) == [6, 0, 3]  # the centre itself is where the quotient is 0
    assert distances(Grown(ball, 2)) == [4, -2, 1]
    assert distances(Box((0, 0, 0), (4, 5, 6), rounding=1)) == [6, -4, 1]
    assert distances(Tube(((0, 0, 0), (20, 0, 0)), 3)) == [-3, -3, 4]
    assert distances(Tube(((0, 0, 0), (20, 0, 0)), 3, height=10)) == [-3, -3, 2]
    turned = Posed(Tube(((0, 0, 0), (20, 0, 0)), 3), (0, 0, 0), 2.0, (0, 0, 90), (0, 0, 1))
    assert distances(turned) == pytest.approx([np.hypot(10, 1) - 6, -5, 0], abs=1e-3)

"""Volumes onto the network's grid and labels back: geometry, intensities, and the cache of prepared cases."""

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lampseg.config import DataConfig
from lampseg.data import Case, Volume, image_to_network, labels_to_grid, prepare, preprocess
from lampseg.errors import UserError
from tests.limits import no_space_beyond

ROOT = Path("unused")
ORIENTATIONS = [
    "".join(axes[i] for i in order) for order in itertools.permutations(range(3)) for axes in [("R", "A", "S")]
]
FLIPPED = ["LPS", "LAS", "RAI", "SLP", "PIR", "AIL"]


def affine_of(codes: str, spacing: tuple[float, float, float], *, tilt: float = 0.0) -> Any:
    """Axes that run towards `codes`, `spacing` mm along the array's axes, the whole turned by `tilt` degrees."""
    affine = np.eye(4)
    axes = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(codes)), (1, 1, 1))[:3, :3]
    turn = Rotation.from_euler("xyz", [tilt, -tilt, tilt / 2], degrees=True).as_matrix()
    affine[:3, :3] = turn @ np.linalg.inv(axes) @ np.diag(spacing)
    affine[:3, 3] = [11, -7, 30]
    return affine


def at(array: Any, affine: Any) -> dict[tuple[float, ...], float]:
    """The array as a map from millimetres to values."""
    voxels = np.indices(array.shape).reshape(3, -1)
    places = np.round(affine[:3, :3] @ voxels + affine[:3, 3:], 3) + 0.0
    return {tuple(place): value for place, value in zip(places.T, array.ravel())}


def config(**fields: Any) -> DataConfig:
    return DataConfig(root=ROOT, **fields)


@pytest.mark.parametrize("codes", ORIENTATIONS + FLIPPED)
@pytest.mark.parametrize("tilt", [0.0, 20.0])
def test_without_resampling_every_voxel_keeps_its_place_and_comes_back_exactly(codes: str, tilt: float) -> None:
    rng = np.random.default_rng(0)
    volume = Volume(rng.random((1, 7, 9, 11), np.float32), affine_of(codes, (1.1, 0.7, 2.5), tilt=tilt))
    array, info = image_to_network(volume, data=config(window=(0, 1)))
    assert nib.aff2axcodes(info.affine) == ("R", "A", "S")
    assert at(array[0], info.affine) == pytest.approx(at(volume.array[0], volume.affine))
    labels = (array[0] * 200).astype(np.uint8)
    np.testing.assert_array_equal(labels_to_grid(labels, info), (volume.array[0] * 200).astype(np.uint8))


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SLP"])
@pytest.mark.parametrize("tilt", [0.0, 20.0])
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (3.0, 2.0, 4.0)])
def test_resampling_keeps_places(codes: str, tilt: float, spacing: tuple[float, float, float]) -> None:
    """A volume that is linear in millimetres is reproduced exactly by trilinear resampling."""
    affine = affine_of(codes, (2.0, 1.0, 3.0), tilt=tilt)
    shape = (19, 25, 17)
    slope = np.array([0.5, -0.3, 0.2])

    def linear(shape: tuple[int, ...], affine: Any) -> Any:
        return (np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]) @ slope

    volume = Volume(linear(shape, affine)[None].astype(np.float32), affine)
    array, info = image_to_network(volume, data=config(spacing=spacing, window=(-100, 100)))
    assert info.spacing == pytest.approx(spacing)
    assert array.shape == (1, *info.shape)
    interior = (slice(0, -1),) * 3  # the last voxel may lie beyond the scan, where its border is repeated
    expected = linear(info.shape, info.affine) / 200 + 0.5
    np.testing.assert_allclose(array[0][interior], expected[interior], atol=1e-4)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "SLP"])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_every_voxel_takes_the_label_of_the_nearest_one(codes: str, axis: int) -> None:
    volume = Volume(np.zeros((1, 13, 22, 31), np.float32), affine_of(codes, (2.1, 1.3, 0.9), tilt=15))
    _, info = image_to_network(volume, data=config(spacing=(1.2, 1.5, 1.9)))
    back = labels_to_grid(np.indices(info.shape)[axis].astype(np.uint8), info)
    places = volume.affine[:3, :3] @ np.indices(back.shape).reshape(3, -1) + volume.affine[:3, 3:]
    wanted = (np.linalg.inv(info.affine[:3, :3]) @ (places - info.affine[:3, 3:]))[axis].reshape(back.shape)
    wanted = wanted.clip(0, info.shape[axis] - 1)  # beyond the network's grid its border goes on
    assert np.abs(back - wanted).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("codes", ["RAS", "LPS", "LAS", "PIR"])
@pytest.mark.parametrize("tilt", [0.0, 15.0])
def test_a_ball_comes_back_to_its_place_after_resampling(codes: str, tilt: float) -> None:
    affine = affine_of(codes, (1.0, 1.3, 2.0), tilt=tilt)
    shape = (40, 34, 25)
    middle = affine[:3, :3] @ [18, 20, 11] + affine[:3, 3]
    away = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3] - middle
    ball = (np.linalg.norm(away, axis=-1) < 9).astype(np.float32)
    array, info = image_to_network(Volume(ball[None], affine), data=config(spacing=(1.5, 1.5, 1.5), window=(0, 1)))
    back = labels_to_grid((array[0] > 0.45).astype(np.uint8), info)
    assert back.shape == shape
    overlap = 2 * np.count_nonzero(back * ball) / (back.sum() + ball.sum())
    assert overlap > 0.93
    np.testing.assert_allclose(np.argwhere(back).mean(0), np.argwhere(ball).mean(0), atol=0.3)


def test_a_sheared_grid_comes_back_in_shape_and_place() -> None:
    """A tilted gantry: slices are shifted against each other, resampling to a spacing straightens the grid."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[1, 2] = 0.6
    away = np.moveaxis(np.indices((30, 32, 20)), 0, -1) @ affine[:3, :3].T - affine[:3, :3] @ [15, 16, 10]
    ball = (np.linalg.norm(away, axis=-1) < 9).astype(np.float32)
    array, info = image_to_network(Volume(ball[None], affine), data=config(spacing=(1, 1, 1), window=(0, 1)))
    back = labels_to_grid((array[0] > 0.45).astype(np.uint8), info)
    assert back.shape == ball.shape
    assert 2 * np.count_nonzero(back * ball) / (back.sum() + ball.sum()) > 0.93


def test_labels_keep_a_wide_integer_type() -> None:
    _, info = image_to_network(Volume(np.zeros((1, 4, 5, 6), np.float32), affine_of("LPS", (1, 1, 1))), data=config())
    assert labels_to_grid(np.full((4, 5, 6), 300, np.uint16), info).max() == 300


def test_the_window_clips_and_scales() -> None:
    values = np.array([-1000, -21, 34, 89, 2000], np.float32).reshape(1, 5, 1, 1)
    array, _ = image_to_network(Volume(values, np.eye(4)), data=config(window=(-21, 89)))
    np.testing.assert_allclose(array.ravel(), [0, 0, 0.5, 1, 1], atol=1e-6)


def test_without_a_window_mean_is_zero_and_deviation_one() -> None:
    values = np.random.default_rng(0).normal(300, 40, (1, 8, 8, 8)).astype(np.float32)
    array, _ = image_to_network(Volume(values, np.eye(4)), data=config())
    assert array.mean() == pytest.approx(0, abs=1e-4)
    assert array.std() == pytest.approx(1, abs=1e-4)
    flat, _ = image_to_network(Volume(np.full((1, 4, 4, 4), 7, np.float32), np.eye(4)), data=config())
    np.testing.assert_array_equal(flat, 0)


CLASSES = 4


def write_case(folder: Path, name: str = "a", *, annotated: tuple[int, ...] | None = None, seed: int = 0) -> Case:
    """12x14x10 voxels of 2 mm, LPS; class 1 is a block of 4^3, class 2 one voxel, class 3 nowhere."""
    rng = np.random.default_rng(seed)
    image = rng.normal(0, 50, (12, 14, 10)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[2:6, 3:7, 1:5] = 1
    label[9, 9, 9] = 2
    folder.mkdir(exist_ok=True)
    affine = affine_of("LPS", (2, 2, 2))
    for kind, array in (("image", image), ("label", label)):
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.{kind}.nii.gz")
    return Case(name, (folder / f"{name}.image.nii.gz",), folder / f"{name}.label.nii.gz", annotated)


def test_a_prepared_case(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    seen: list[str] = []
    (ready,) = prepare([case], classes=CLASSES, data=config(), folder=tmp_path / "cache", on_case=seen.append)
    assert seen == ["a"]
    assert (ready.id, ready.shape, ready.annotated) == ("a", (12, 14, 10), (1, 2, 3))
    assert ready.spacing == pytest.approx((2, 2, 2))
    assert ready.voxels == (12 * 14 * 10 - 65, 64, 1, 0)
    image, label = ready.image_part(), ready.label_part()
    assert (image.dtype, label.dtype) == (np.float32, np.uint8)
    stored = np.asarray(nib.as_closest_canonical(nib.load(case.label)).dataobj)
    np.testing.assert_array_equal(label, stored)
    with np.load(ready.points) as points:  # type: ignore[arg-type]
        assert points["class_1"].dtype == np.int32
        assert {tuple(p) for p in points["class_1"]} == {tuple(p) for p in np.argwhere(label == 1)}
        assert points["class_2"].tolist() == np.argwhere(label == 2).tolist()
        assert points["class_3"].shape == (0, 3)


def test_a_case_without_label_and_one_with_missing_annotations(tmp_path: Path) -> None:
    cases = [replace(write_case(tmp_path, "a"), label=None), write_case(tmp_path, "b", annotated=(1, 2))]
    bare, partial = prepare(cases, classes=CLASSES, data=config(), folder=tmp_path / "cache")
    assert (bare.label, bare.points, bare.annotated, bare.voxels) == (None, None, (), (0, 0, 0, 0))
    assert partial.annotated == (1, 2)


def test_points_are_at_most_a_fixed_number_and_the_same_each_time(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(preprocess, "POINTS", 20)
    case = write_case(tmp_path)
    found = []
    for folder in ("one", "two"):
        (ready,) = prepare([case], classes=CLASSES, data=config(), folder=tmp_path / folder)
        with np.load(ready.points) as points:  # type: ignore[arg-type]
            found.append(points["class_1"])
    assert len({tuple(p) for p in found[0]}) == 20
    np.testing.assert_array_equal(*found)


def test_label_voxels_of_a_class_that_is_not_annotated_are_refused(tmp_path: Path) -> None:
    case = write_case(tmp_path, annotated=(1, 3))
    with pytest.raises(UserError, match=r"a\.label\.nii\.gz: holds voxels of class 2, .*`not_annotated` for a"):
        prepare([case], classes=CLASSES, data=config(), folder=tmp_path / "cache")


def test_what_is_prepared_is_reused_until_something_changes(tmp_path: Path, monkeypatch: Any) -> None:
    work: list[str] = []
    original = preprocess.prepare_case

    def counted(case: Case, *rest: Any) -> Any:
        work.append(case.id)
        return original(case, *rest)

    monkeypatch.setattr(preprocess, "prepare_case", counted)
    folder = tmp_path / "cache"

    def runs(case: Case, data: DataConfig, classes: int = CLASSES) -> int:
        work.clear()
        (ready,) = prepare([case], classes=classes, data=data, folder=folder)
        assert len(ready.voxels) == classes
        return len(work)

    case, plain = write_case(tmp_path), config()
    assert [runs(case, plain) for _ in range(2)] == [1, 0]
    assert runs(case, config(validation=0.5, jobs=1)) == 0
    assert runs(replace(case, annotated=(1, 2, 3)), plain) == 0  # the same classes, only spelt out
    options = [{"window": (0, 1)}, {"window": (0, 2)}, {"spacing": (2, 2, 4)}, {"intensity": "nonzero"}]
    for changed in options:
        assert [runs(case, config(**changed)) for _ in range(2)] == [1, 0]
    assert runs(case, plain) == 0, "what other options made lies beside it"
    assert runs(replace(case, annotated=(1, 2)), plain) == 1
    assert runs(replace(case, label=None), plain) == 1
    assert runs(case, plain, classes=5) == 1
    os.utime(case.image, ns=(1, 1))
    assert [runs(case, plain) for _ in range(2)] == [1, 0]
    assert case.label is not None
    os.utime(case.label, ns=(1, 1))
    assert [runs(case, plain) for _ in range(2)] == [1, 0]
    for name, value in (("FORMAT_VERSION", 0), ("LIBRARIES", ("torch",)), ("version", lambda _: "0.1")):
        with monkeypatch.context() as patch:
            patch.setattr(preprocess, name, value)
            assert runs(case, plain) == 1
    assert runs(case, plain) == 0


def test_a_changed_file_within_a_folder_is_noticed(tmp_path: Path) -> None:
    """A DICOM series is a folder, which says nothing of its files' content."""
    (tmp_path / "series").mkdir()
    slices = [tmp_path / "series" / name for name in ("1.dcm", "2.dcm")]
    for path in slices:
        path.write_bytes(b"slice")
    case = Case("a", (tmp_path / "series",), None, None)

    def key() -> Any:
        return preprocess._key(case, CLASSES, config())

    first = key()
    assert key() == first
    state = slices[0].parent.stat()
    slices[1].write_bytes(b"longer")
    os.utime(slices[0].parent, ns=(state.st_atime_ns, state.st_mtime_ns))
    second = key()
    assert second != first
    os.utime(slices[0], ns=(1, 1))
    assert key() not in (first, second)


@pytest.mark.parametrize("name", ["image.b2nd", "label.b2nd", "points.npz", "case.json"])
@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_bytes(p.read_bytes()[:-1])])
def test_a_damaged_entry_is_prepared_again(name: str, spoil: Any, tmp_path: Path) -> None:
    case, folder = write_case(tmp_path), tmp_path / "cache"
    (first,) = prepare([case], classes=CLASSES, data=config(), folder=folder)
    image = first.image_part()
    spoil(first.image.parent / name)
    (again,) = prepare([case], classes=CLASSES, data=config(), folder=folder)
    assert again == first
    np.testing.assert_array_equal(again.image_part(), image)
    assert [path.name for path in folder.iterdir()] == [first.image.parent.name]


def test_a_file_of_the_cache_that_vanishes_while_it_is_used(tmp_path: Path) -> None:
    (ready,) = prepare([write_case(tmp_path)], classes=CLASSES, data=config(), folder=tmp_path / "cache")
    ready.image.write_bytes(b"spoilt")
    with pytest.raises(UserError, match=r"image\.b2nd: the preprocessed volume cannot be read .*delete its folder"):
        ready.image_part()
    ready.image.unlink()
    with pytest.raises(UserError, match="cannot be read"):
        ready.image_part()


def test_a_full_disk_and_an_impossible_folder(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    with no_space_beyond(500), pytest.raises(UserError, match=r"case a cannot be written .*data\.cache"):
        prepare([case], classes=CLASSES, data=config(), folder=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    with pytest.raises(UserError, match="cannot be written"):
        prepare([case], classes=CLASSES, data=config(), folder=case.image / "cache")


def test_a_damaged_scan_is_reported_as_such(tmp_path: Path) -> None:
    case = write_case(tmp_path)
    case.image.write_bytes(case.image.read_bytes()[:300])
    with pytest.raises(UserError, match=r"a\.image\.nii\.gz: damaged or cut short"):
        prepare([case], classes=CLASSES, data=config(), folder=tmp_path / "cache")

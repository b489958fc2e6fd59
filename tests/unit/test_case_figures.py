"""One case measured: known grids, boxes, volumes and values, whatever the axes of the file."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lampseg.data import Case
from lampseg.data.fingerprint.case_figures import FOREGROUND, IMAGE, measure_case, read_header
from lampseg.errors import UserError

CLASSES = ("background", "kidney", "cord", "lens")
SHAPE = (10, 12, 8)
AFFINE = np.diag([2.0, 3.0, 5.0, 1.0])


def scan(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(-1000, 1000, SHAPE).astype(np.int16)


def organs() -> Any:
    """A kidney of 2x3x4 voxels inside, a cord of 4 voxels at the lower border, no lens."""
    label = np.zeros(SHAPE, np.uint8)
    label[3:5, 4:7, 2:6] = 1
    label[8, 2, 0:4] = 2
    return label


def save(
    folder: Path, image: Any, label: Any = None, *, axes: str = "RAS", annotated: Any = None, name: str = "a"
) -> Case:
    """A case whose files are stored in the given axis order."""
    order = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("RAS", axes)))
    paths = []
    for kind, array in (("image", image), ("label", label)):
        if array is None:
            continue
        paths.append(folder / f"{name}.{kind}.nii.gz")
        nib.save(nib.Nifti1Image(array, AFFINE).as_reoriented(order), paths[-1])
    return Case(name, (paths[0],), paths[1] if label is not None else None, annotated)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAL", "PIR"])
def test_headers_are_told_in_ras_order(tmp_path: Path, axes: str) -> None:
    header = read_header(save(tmp_path, scan(), axes=axes))
    assert (header.shape, header.spacing, header.channels) == (SHAPE, (2, 3, 5), 1)
    assert header.orientation == axes
    assert header.oblique == 0


def test_the_tilt_of_oblique_scans(tmp_path: Path) -> None:
    turn = np.eye(4)
    c, s = np.cos(np.radians(12)), np.sin(np.radians(12))
    turn[:2, :2] = [[c, -s], [s, c]]
    nib.save(nib.Nifti1Image(scan(), turn @ AFFINE), tmp_path / "a.nii")
    assert read_header(Case("a", (tmp_path / "a.nii",), None, None)).oblique == pytest.approx(12, abs=1e-3)


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SAL", "PIR"])
def test_voxels_volumes_and_boxes(tmp_path: Path, axes: str) -> None:
    found = measure_case(save(tmp_path, scan(), organs(), axes=axes), classes=CLASSES, sample=10_000)
    kidney, cord = found.classes[1], found.classes[2]
    assert sorted(found.classes) == [1, 2]
    assert (kidney.voxels, kidney.box_voxels, kidney.box_mm) == (24, (2, 3, 4), (4, 9, 20))
    assert kidney.ml == pytest.approx(24 * 30 / 1000)
    assert (cord.voxels, cord.box_voxels, cord.box_mm) == (4, (1, 1, 4), (2, 3, 20))
    assert (kidney.touches_border, cord.touches_border) == (False, True)
    assert found.background == 960 - 28
    ((low, mean, high),) = found.intensity
    assert (low, high) == (scan().min(), scan().max())
    assert mean == pytest.approx(scan().mean())


@pytest.mark.parametrize("axes", ["RAS", "SAL"])
def test_small_samples_are_all_voxels(tmp_path: Path, axes: str) -> None:
    found = measure_case(save(tmp_path, scan(), organs(), axes=axes), classes=CLASSES, sample=10_000)
    expected = {IMAGE: scan(), FOREGROUND: scan()[organs() > 0]}
    expected |= {index: scan()[organs() == index] for index in (0, 1, 2)}
    assert found.samples.keys() == expected.keys()
    for key, values in expected.items():
        assert sorted(found.samples[key][0].tolist()) == sorted(values.ravel().tolist()), key


def test_large_samples_are_drawn_evenly_and_the_same_each_time(tmp_path: Path) -> None:
    """A ramp: any part of it that was left out or preferred would shift the mean."""
    ramp = np.arange(960, dtype=np.int16).reshape(SHAPE)
    label = np.zeros(SHAPE, np.uint8)
    label[2:9] = 1
    case = save(tmp_path, ramp, label)
    found = [measure_case(case, classes=CLASSES, sample=300, seed=seed) for seed in (0, 0, 1)]
    for key, inside in ((IMAGE, ramp), (1, ramp[2:9]), (FOREGROUND, ramp[2:9])):
        values = found[0].samples[key][0]
        assert values.size == 300
        assert np.unique(values).size == 300
        assert np.isin(values, inside).all()
        assert values.mean() == pytest.approx(inside.mean(), abs=40)  # about three deviations
        np.testing.assert_array_equal(values, found[1].samples[key][0])
        assert not np.array_equal(values, found[2].samples[key][0])


def test_channels_are_sampled_at_the_same_voxels(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.stack([scan(), scan() + 5], -1), AFFINE), tmp_path / "a.nii")
    nib.save(nib.Nifti1Image(organs(), AFFINE), tmp_path / "l.nii")
    case = Case("a", (tmp_path / "a.nii",), tmp_path / "l.nii", None)
    assert read_header(case).channels == 2
    found = measure_case(case, classes=CLASSES, sample=20)
    assert len(found.intensity) == 2
    for values in found.samples.values():
        np.testing.assert_array_equal(values[0] + 5, values[1])


def test_a_file_for_each_organ(tmp_path: Path) -> None:
    """The second is the only one drawn, in a file of its own."""
    case = save(tmp_path, scan())
    nib.save(nib.Nifti1Image((organs() == 2).astype(np.uint8), AFFINE), tmp_path / "cord.nii.gz")
    masks = ((2, tmp_path / "cord.nii.gz"),)
    found = measure_case(replace(case, annotated=(2,), masks=masks), classes=CLASSES, sample=50)
    assert {index: each.voxels for index, each in found.classes.items()} == {2: 4}
    assert sorted(found.samples[2][0].tolist()) == sorted(scan()[organs() == 2].tolist())


def test_without_labels(tmp_path: Path) -> None:
    found = measure_case(save(tmp_path, scan()), classes=CLASSES, sample=50)
    assert found.classes == {}
    assert found.background is None
    assert list(found.samples) == [IMAGE]


def test_background_is_unknown_where_an_organ_was_not_drawn(tmp_path: Path) -> None:
    found = measure_case(save(tmp_path, scan(), organs(), annotated=(1, 2)), classes=CLASSES, sample=50)
    assert found.background is None
    assert 0 not in found.samples
    with pytest.raises(UserError, match=r"a\.label\.nii\.gz: holds voxels of cord, which is listed as not annotated"):
        measure_case(save(tmp_path, scan(), organs(), annotated=(1,)), classes=CLASSES, sample=50)


def test_labels_on_padding(tmp_path: Path) -> None:
    image = scan()
    image[:, :, 0] = -2000
    found = measure_case(save(tmp_path, image, organs()), classes=CLASSES, sample=50)
    assert found.at_minimum == {1: 0, 2: 0.25}
    assert measure_case(save(tmp_path, scan(), organs()), classes=CLASSES, sample=50).at_minimum == {}


def test_copies_have_one_digest(tmp_path: Path) -> None:
    image = scan()
    digests = [
        measure_case(save(tmp_path, each, name=name), classes=CLASSES, sample=9).digest
        for name, each in (("a", image), ("b", image), ("c", image + 1), ("d", image.reshape(12, 10, 8)))
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3

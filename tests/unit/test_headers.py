"""Shapes from headers alone are those that `prepare` makes, for any orientation, tilt, shear and spacing."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lampseg.config import DataConfig
from lampseg.data import Case, grid, image_to_network, prepare, read_volume
from lampseg.data.headers import largest_shape, network_shape
from lampseg.errors import UserError


def config(spacing: tuple[float, float, float] | None = None) -> DataConfig:
    return DataConfig(root=Path("unused"), spacing=spacing, window=(0, 1))


def random_affine(rng: np.random.Generator, *, tilt: float, shear: bool) -> Any:
    """Axes in any order and direction, 0.4 to 5 mm, turned by up to `tilt` degrees, perhaps sheared."""
    affine = np.eye(4)
    spacing = rng.uniform(0.4, 5, 3) if rng.random() < 0.7 else rng.choice([0.5, 1.0, 1.5, 3.0], 3)
    axes = np.zeros((3, 3))
    axes[rng.permutation(3), range(3)] = rng.choice([-1, 1], 3)
    turn = Rotation.from_euler("xyz", rng.uniform(-tilt, tilt, 3), degrees=True).as_matrix()
    skew = np.eye(3) + np.triu(rng.uniform(-0.3, 0.3, (3, 3)), 1) if shear else np.eye(3)
    affine[:3, :3] = turn @ skew @ axes @ np.diag(spacing)
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return affine.astype(np.float32) if rng.random() < 0.7 else affine


@pytest.mark.parametrize("shear", [False, True])
@pytest.mark.parametrize("tilt", [0, 5, 30, 60])
def test_shapes_are_those_of_the_transformed_volume(tilt: float, shear: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng([int(tilt), shear])
    path = tmp_path / "scan.nii"
    for _ in range(40):
        shape = tuple(int(size) for size in rng.integers(1, 24, 3))
        affine = random_affine(rng, tilt=tilt, shear=shear)
        nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.uint8), affine), path)
        x, y, z = (float(size) for size in rng.uniform(0.6, 4, 3).round(1))
        for data in (config(), config((x, y, z))):
            array, info = image_to_network(read_volume(path), data=data)
            assert network_shape((path,), data=data) == info.shape == array.shape[1:], (shape, affine, data.spacing)


def test_shapes_are_those_that_prepare_keeps(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    cases = []
    for index in range(4):
        path = tmp_path / f"c{index}.nii.gz"
        affine = random_affine(rng, tilt=20, shear=False)
        nibabel.save(nibabel.Nifti1Image(rng.normal(size=(9, 12, 7)).astype(np.float32), affine), path)
        cases.append(Case(f"c{index}", (path,), None, None))
    data = config((1.3, 2, 2.7))
    ready = prepare(cases, classes=2, data=data, folder=tmp_path / "cache")
    assert [case.shape for case in ready] == [network_shape(case.images, data=data) for case in cases]
    largest = largest_shape([case.images for case in cases], data=data)
    assert largest == tuple(max(case.shape[axis] for case in ready) for axis in range(3))


def test_a_volume_that_no_memory_holds_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(np.zeros((16, 16, 16), np.uint8), np.diag([2, 2, 2, 1])), path)
    monkeypatch.setattr(grid, "MAX_VOXELS", 10**6)
    with pytest.raises(UserError, match=r"data\.spacing: \[0\.001, 1\.0, 1\.0\] mm .*30001x31x31 .* 2 x 2 x 2 mm"):
        network_shape((path,), data=config((0.001, 1, 1)))
    with pytest.raises(UserError, match="choose larger spacings"):
        image_to_network(read_volume(path), data=config((0.001, 1, 1)))
    assert network_shape((path,), data=config()) == (16, 16, 16)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), r"scan\.nii\.gz: no such file"),
        (lambda path: path.write_bytes(b"text"), r"scan\.nii\.gz: not a NIfTI file"),
        (lambda path: path.write_bytes(path.read_bytes()[:60]), r"scan\.nii\.gz: damaged or cut short"),
        (
            lambda path: nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 1, 2)), np.eye(4)), path),
            "5D, shape 4x4x4x1x2",
        ),
    ],
)
def test_headers_that_are_refused(spoil: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scan.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(8, 8, 8)), np.eye(4)), path)
    spoil(path)
    with pytest.raises(UserError, match=message):
        network_shape((path,), data=config())

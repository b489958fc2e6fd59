"""Geometry is never lost: oblique, left-handed and permuted files come back voxel for voxel, on the same affine."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from lampseg.config import DataConfig
from lampseg.data import image_to_network, labels_to_grid, read_image, read_label, write_labels
from lampseg.data.grid import to_grid
from tests.unit.format_folders import write_npy, write_nrrd

SHAPE = (14, 9, 11)
DATA = DataConfig(root=Path("unused"))


def affine(axes: tuple[int, int, int], signs: tuple[int, int, int], tilt: float) -> Any:
    """Voxels of 0.75 x 1.5 x 2.5 mm along the given axes, turned by `tilt` degrees about a skew axis."""
    turn = Rotation.from_rotvec(np.deg2rad(tilt) * np.array([2, -1, 3]) / np.sqrt(14)).as_matrix()
    matrix = np.zeros((3, 3))
    matrix[list(axes), range(3)] = np.array(signs) * [0.75, 1.5, 2.5]
    out = np.eye(4)
    out[:3, :3] = turn @ matrix
    out[:3, 3] = [-90.5, 126.25, -72]
    return out


AFFINES = {
    "straight": affine((0, 1, 2), (1, 1, 1), 0),
    "left-handed": affine((0, 1, 2), (-1, 1, 1), 0),
    "permuted": affine((2, 0, 1), (1, -1, 1), 0),
    "oblique": affine((0, 1, 2), (1, 1, 1), 20),
    "oblique, left-handed and permuted": affine((1, 2, 0), (-1, -1, 1), 35),
}


def save(path: Path, array: Any, where: Any) -> Path:
    if path.suffix == ".nrrd":
        return write_nrrd(path, array, where)
    nibabel.save(nibabel.Nifti1Image(array, where), path)
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("name", AFFINES)
def test_labels_return_to_the_files_grid(tmp_path: Path, name: str, suffix: str) -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, SHAPE).astype(np.uint8)
    scan = (labels.astype(np.int16) * 100 + rng.integers(0, 9, SHAPE)).astype(np.int16)
    volume = read_image((save(tmp_path / f"scan{suffix}", scan, AFFINES[name]),))
    np.testing.assert_allclose(volume.affine, AFFINES[name], atol=1e-5)
    on_network, info = image_to_network(volume, data=DATA)
    assert nibabel.aff2axcodes(info.affine) == ("R", "A", "S")
    drawn = read_label(save(tmp_path / f"label{suffix}", labels, AFFINES[name]), classes=5, like=volume)
    truth = to_grid(drawn[None], volume.affine, DATA, mode="nearest")[0].numpy()[0].astype(np.uint8)
    # The image and its label take the same way: the label can be told from the image, voxel by voxel.
    assert np.corrcoef(on_network[0].ravel(), truth.ravel())[0, 1] > 0.999
    assert np.unique(truth).tolist() == [0, 1, 2, 3, 4]

    write_labels(tmp_path / "out.nii.gz", labels_to_grid(truth, info), info.input_affine, header=volume.header)
    written = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), labels)
    np.testing.assert_allclose(written.affine, AFFINES[name], atol=1e-4)


@pytest.mark.parametrize("name", AFFINES)
def test_the_same_scan_in_both_kinds_of_file(tmp_path: Path, name: str) -> None:
    """Resampled, too: where a voxel lies does not depend on the kind of file.

    NIfTI rounds an affine to float32, after which an oblique one is no longer quite orthogonal, and MONAI lays the new
    grid elsewhere (centred, not from the first voxel): so both files get the rounded numbers.
    """
    rounded = AFFINES[name].astype(np.float32).astype(np.float64)
    array = np.random.default_rng(1).normal(0, 100, SHAPE).astype(np.float32)
    data = DataConfig(root=Path("unused"), spacing=(1.1, 1.3, 2.1))
    pair = [
        image_to_network(read_image((save(tmp_path / f"scan{suffix}", array, rounded),)), data=data)
        for suffix in (".nii.gz", ".nrrd")
    ]
    (nifti, there), (nrrd, here) = pair
    assert nifti.shape == nrrd.shape
    np.testing.assert_allclose(there.affine, here.affine, atol=1e-9)
    np.testing.assert_allclose(nifti, nrrd, atol=2e-3)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
@pytest.mark.parametrize("name", AFFINES)
def test_a_mark_keeps_its_place_when_resampled(tmp_path: Path, name: str, suffix: str) -> None:
    """A cube found on a finer grid and written back covers the cube that was drawn, where it was drawn."""
    drawn = np.zeros(SHAPE, np.uint8)
    drawn[3:9, 2:6, 4:8] = 1
    volume = read_image((save(tmp_path / f"scan{suffix}", drawn.astype(np.int16), AFFINES[name]),))
    data = DataConfig(root=Path("unused"), spacing=(0.7, 0.7, 0.7), window=(0, 1))
    image, info = image_to_network(volume, data=data)
    found = (image[0] > 0.5).astype(np.uint8)
    back = labels_to_grid(found, info)
    assert back.shape == SHAPE
    assert 2 * np.count_nonzero(back & drawn) / (back.sum() + drawn.sum()) > 0.95


@pytest.mark.parametrize("name", ["straight", "left-handed", "permuted"])
def test_npy_files_lie_as_the_scans_they_were_made_of(tmp_path: Path, name: str) -> None:
    """AnatomyNet's files are ITK's arrays of scans that lie straight: the network sees the same, but for the origin."""
    array = np.random.default_rng(2).normal(0, 100, SHAPE).astype(np.float32)
    scan = read_image((save(tmp_path / "scan.nrrd", array, AFFINES[name]),))
    data = DataConfig(root=Path("unused"), window=(-500, 500))
    image, info = image_to_network(scan, data=data)
    path = write_npy(tmp_path / "scan.npy", array, AFFINES[name])
    plain, there = image_to_network(read_image((path,), voxel_size=info.spacing), data=data)
    np.testing.assert_array_equal(plain, image)
    np.testing.assert_allclose(there.affine[:3, :3], info.affine[:3, :3], atol=1e-9)

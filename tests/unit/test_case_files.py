"""One image of all channels, whether they lie in one file or in one for each."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from lampseg.data import image_geometry, read_image
from lampseg.errors import UserError

AFFINE = np.array([[-0.8, 0.1, 0, 12], [0.05, -0.9, 0.2, -30], [0, 0.1, 2.5, 7.5], [0, 0, 0, 1]])


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def test_one_file_and_one_for_each_channel_are_the_same_image(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(5, 6, 7, 3)).astype(np.float32)
    together = (save(tmp_path / "all.nii.gz", array),)
    apart = tuple(save(tmp_path / f"c_{channel:04d}.nii.gz", array[..., channel]) for channel in range(3))
    one, other = read_image(together), read_image(apart)
    np.testing.assert_array_equal(one.array, np.moveaxis(array, -1, 0))
    np.testing.assert_array_equal(one.array, other.array)
    np.testing.assert_allclose(one.affine, other.affine)
    assert image_geometry(together)[0] == image_geometry(apart)[0] == (3, 5, 6, 7)


def test_channels_on_different_grids_are_refused(tmp_path: Path) -> None:
    first = save(tmp_path / "c_0000.nii.gz", np.zeros((5, 6, 7), np.float32))
    short = save(tmp_path / "c_0001.nii.gz", np.zeros((5, 6, 6), np.float32))
    moved = AFFINE.copy()
    moved[0, 3] += 3
    aside = save(tmp_path / "c_0002.nii.gz", np.zeros((5, 6, 7), np.float32), moved)
    with pytest.raises(UserError, match=r"c_0001\.nii\.gz: channel of shape 5x6x6, but its image has 5x6x7"):
        read_image((first, short))
    with pytest.raises(UserError, match=r"c_0001\.nii\.gz: shape \[5, 6, 6\], but the first channel"):
        image_geometry((first, short))
    with pytest.raises(UserError, match=r"c_0002\.nii\.gz: affine .* differs from its image's"):
        read_image((first, aside))

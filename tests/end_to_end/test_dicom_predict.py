"""`lampseg predict` on DICOM: the same labels, at the same place, as on the same scan in NIfTI."""

from pathlib import Path

import nibabel
import numpy as np

from tests.dicom_files import affine_of, tilted, write_series
from tests.end_to_end.command import lampseg, train
from tests.end_to_end.small import save, write_config, write_dataset


def test_a_series_by_its_folder_and_by_one_of_its_files(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", write_dataset(tmp_path / "data"))
    run = train(config, tmp_path / "run", devices=1)
    stored = np.random.default_rng(1).integers(0, 120, (16, 12, 8)).astype(np.uint16)
    directions, spacing, origin = tilted((15, -10, 25)), (1.0, 1.0, 1.5), (-20.0, 5.0, 300.0)
    geometry = {"directions": directions, "spacing": spacing, "origin": origin, "intercept": -10.0}
    write_series(tmp_path / "ct", stored, order=[3, 0, 5, 1, 4, 2, 7, 6], **geometry)
    both = write_series(tmp_path / "several", stored, series=12, **geometry)
    write_series(tmp_path / "several", stored[:, :, :5], series=13)
    nifti = save(tmp_path / "same.nii.gz", stored.astype(np.float32) - 10, affine_of(directions, spacing, origin))
    out = tmp_path / "out"
    lampseg("predict", "--run", run, "--out", out, "--devices", "1", tmp_path / "ct", both[0], nifti)
    expected = nibabel.load(out / "same.nii.gz")
    assert len(np.unique(expected.get_fdata())) > 1
    for name in ("ct", both[0].stem):
        found = nibabel.load(out / f"{name}.nii.gz")
        np.testing.assert_allclose(found.affine, expected.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))

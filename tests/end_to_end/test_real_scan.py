"""A real scan, from the example's script over training on two devices to a prediction on the scan's own grid."""

import json
import sys
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import slicerio

from tests.end_to_end.command import lampseg, losses, succeed, train

pytestmark = pytest.mark.timeout(600)

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = (
    "network.filters=4",
    "network.depth=2",
    "curriculum.0.steps=3",
    "curriculum.0.batch=2",
    "curriculum.1.steps=2",
    "curriculum.1.batch=1",
    "curriculum.2.steps=2",
)


@pytest.fixture(scope="module")
def converted(folder: Path) -> Path:
    """The folder that the script wrote."""
    succeed((sys.executable, EXAMPLES / "chest_ct.py", "--out", folder / "chest-ct"), folder=folder / "convert.log")
    return folder / "chest-ct"


@pytest.fixture(scope="module")
def predicted(converted: Path, folder: Path) -> Path:
    """The folder of the prediction, after a few steps of the example's configuration on two devices."""
    run, out = folder / "chest-run", folder / "chest-predictions"
    train(EXAMPLES / "chest_ct.yaml", run, f"data.root={converted}", *TINY, devices=2)
    assert len(losses(run)) == 7
    assert json.loads((run / "best.json").read_text())["step"] == 7, "nothing to select by"
    lampseg("predict", "--run", run, "--out", out, converted / "imagesTr")
    return out


def test_the_script_keeps_the_scans_geometry_and_names(converted: Path) -> None:
    shipped, header = nrrd.read(str(Path(slicerio.__file__).parent / "data" / "CTChest4.nrrd"))
    image = nib.load(converted / "imagesTr" / "CTChest4.nii.gz")
    label = nib.load(converted / "labelsTr" / "CTChest4.nii.gz")
    np.testing.assert_array_equal(np.asarray(image.dataobj), shipped)
    corner = image.affine @ [0, 0, 0, 1]
    np.testing.assert_allclose(corner[:3] * [-1, -1, 1], header["space origin"], rtol=1e-6)
    np.testing.assert_allclose(image.header.get_zooms(), (3.04687595, 3.04687595, 10), rtol=1e-6)
    np.testing.assert_allclose(label.affine, image.affine)
    names = json.loads((converted / "dataset.json").read_text())["labels"]
    labels = np.asarray(label.dataobj)
    assert sorted(np.unique(labels)) == list(range(8)) == sorted(int(value) for value in names)
    places = {name: image.affine[:3, :3] @ np.argwhere(labels == int(v)).mean(0) for v, name in names.items()}
    assert places["right_lung"][0] > places["left_lung"][0] + 50, "x counts towards the right"
    assert places["cervical_vertebral_column"][2] > places["lumbar_vertebral_column"][2] + 100, "z counts upward"
    lung = np.asarray(image.dataobj)[labels == 5]
    assert np.median(lung) < -800, "the label map does not lie on the scan"


def test_the_script_does_not_overwrite(converted: Path, folder: Path) -> None:
    with pytest.raises(AssertionError, match="holds a data set already"):
        succeed((sys.executable, EXAMPLES / "chest_ct.py", "--out", converted), folder=folder / "again.log")


def test_the_prediction_lies_on_the_scans_grid(converted: Path, predicted: Path) -> None:
    scan = nib.load(converted / "imagesTr" / "CTChest4.nii.gz")
    found = nib.load(predicted / "CTChest4.nii.gz")
    assert found.shape == scan.shape == (128, 128, 34)
    np.testing.assert_array_equal(found.affine, scan.affine)
    for code in ("qform_code", "sform_code"):
        assert found.header[code] == scan.header[code]
    assert found.get_data_dtype() == np.uint8
    labels = np.asarray(found.dataobj)
    assert labels.max() <= 7
    assert len(np.unique(labels)) > 1
    assert [path.name for path in predicted.iterdir() if path.name.startswith(".")] == []


def test_the_prediction_is_evaluated(
    converted: Path, predicted: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folder / "chest-evaluation"
    lampseg("evaluate", "--predictions", predicted, "--labels", converted / "labelsTr", "--out", out)
    assert "right_lung" in capsys.readouterr().out
    labels = np.asarray(nib.load(converted / "labelsTr" / "CTChest4.nii.gz").dataobj) == 5
    found = np.asarray(nib.load(predicted / "CTChest4.nii.gz").dataobj) == 5
    dice = 2 * (labels & found).sum() / (labels.sum() + found.sum())
    assert f"{dice:.4f}"[:5] in (out / "evaluation.csv").read_text()

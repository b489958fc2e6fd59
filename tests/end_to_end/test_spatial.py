"""`parallel.mode: spatial` from end to end: trains, resumes and predicts as one device does, and says what it takes."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from lampseg.partition import plans_from_json
from tests.end_to_end.command import lampseg, losses, metrics, steps, train
from tests.end_to_end.small import refused
from tests.end_to_end.test_training import largest_difference

pytestmark = pytest.mark.timeout(600)

SHORT = (
    "precision=float64",
    "network.norm=batch",
    "curriculum.0.steps=2",
    "curriculum.1.steps=1",
    "curriculum.2.steps=2",
    "checkpoint.every_steps=3",
)


@pytest.fixture(scope="module")
def whole(config: Path, folder: Path) -> Path:
    return train(config, folder / "spatial-whole", *SHORT, devices=1)


@pytest.fixture(scope="module")
def slabs(config: Path, folder: Path) -> Path:
    return train(config, folder / "spatial-slabs", *SHORT, "parallel.mode=spatial", devices=2)


def test_losses_weights_and_validations_are_those_of_one_device(whole: Path, slabs: Path) -> None:
    """Patches and whole volumes of different shapes; BatchNorm's statistics too."""
    assert losses(slabs) == pytest.approx(losses(whole), rel=1e-9)
    assert largest_difference(slabs, whole) < 1e-6
    dice = [[r["validation"] for r in metrics(run) if "validation" in r] for run in (slabs, whole)]
    assert dice[0] == pytest.approx(dice[1], abs=1e-9)


def test_memory_is_what_the_plan_says(slabs: Path) -> None:
    plans = plans_from_json((slabs / "plan.json").read_text())
    assert [plan.choices.sharing for plan in plans] == [2, 2, 2]
    seen = 0
    for record in [record for record in steps(slabs) if "tensor_peak_bytes" in record][1:]:
        plan = plans[record["stage"]]
        if list(plan.input_shape[2:]) == record["patch"]:
            predicted = [load.tensor_bytes for load in plan.devices]
            assert record["tensor_peak_bytes"] == pytest.approx(predicted, rel=0.03)
            seen += 1
    assert seen, "no step had the planned shape"


def test_two_volumes_on_two_slabs_each_and_back_to_one_device(config: Path, folder: Path, whole: Path) -> None:
    """Four processes until the last checkpoint, one from there on."""
    run = folder / "spatial-replicas"
    options = (*SHORT, "curriculum.2.batch=2")
    first = train(config, folder / "spatial-batch", *options, devices=1)
    found = train(config, run, *options, "parallel.mode=spatial", "parallel.replicas=2", devices=4)
    assert losses(found) == pytest.approx(losses(first), rel=1e-9)
    assert plans_from_json((run / "plan.json").read_text())[2].choices.slabs.count(2) == 1


def test_predictions_are_those_of_one_device(slabs: Path, folder: Path) -> None:
    images = sorted((folder / "data" / "imagesTs").glob("*.nii.gz"))
    out = [folder / f"spatial-predicted-{n}" for n in (1, 2)]
    for n, where in enumerate(out, start=1):
        lampseg("predict", "--run", slabs, "--out", where, "--devices", str(n), *images)
    for image in images:
        first, second = (np.asarray(nibabel.load(each / image.name).dataobj) for each in out)
        assert np.array_equal(first, second)
        assert len(np.unique(first)) > 1


def test_resumes_on_slabs_what_one_device_began(config: Path, folder: Path, whole: Path) -> None:
    run = folder / "spatial-resumed"
    train(config, run, *SHORT, devices=1)
    for file in (run / "checkpoints").glob("step-*5"):
        for part in file.iterdir():
            part.unlink()
        file.rmdir()
    resumed = train(config, run, *SHORT, "parallel.mode=spatial", devices=2, resume=True)
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-9)


def test_attention_is_refused_by_name(config: Path, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    network = json.dumps(
        {"img_size": [16, 16, 16], "feature_size": 4, "hidden_size": 12, "mlp_dim": 16, "num_heads": 3}
    )
    text = refused(
        capsys,
        *("train", config, "--run", folder / "spatial-unetr", "--devices", "2", "--parallel.mode", "spatial"),
        *("--network.name", "monai.networks.nets.UNETR", "--network.kwargs", network, "--network.filters", "null"),
        *("--network.norm", "null", "--network.depth", "null", "--network.stem_stride", "null"),
        *("--curriculum.1.patch", "16", "--curriculum.2.patch", "16"),
    )
    assert "is not known to be exact on slabs" in text
    assert "parallel.mode: pipeline" in text

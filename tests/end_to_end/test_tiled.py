"""`parallel.mode: tiled` from end to end: trains, resumes and predicts as one device does, in less memory."""

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from lampseg.parallel.tiled.runner import TileRunner
from lampseg.partition import plans_from_json
from tests.end_to_end.command import lampseg, losses, metrics, steps, train
from tests.end_to_end.small import refused
from tests.end_to_end.test_training import largest_difference

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def short(config: Path, folder: Path) -> Path:
    """Float64, BatchNorm, patches and whole volumes (two in a batch) of a coarser phantom."""
    tree = yaml.safe_load(config.read_text())
    tree["precision"] = "float64"
    tree["network"]["norm"] = "batch"
    tree["data"] |= {"spacing": [8, 8, 8], "cache": str(folder / "tiled-preprocessed")}
    tree["curriculum"] = [{"patch": 16, "batch": 2, "steps": 3}, {"patch": "whole", "batch": 2, "steps": 2, "lr": 5e-4}]
    tree["checkpoint"] = {"every_steps": 4}
    path = folder / "tiled.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def whole(short: Path, folder: Path) -> Path:
    return train(short, folder / "tiled-whole", devices=1)


@pytest.fixture(scope="module")
def tiled(short: Path, folder: Path) -> Path:
    return train(short, folder / "tiled-tiles", "parallel.mode=tiled", "parallel.tile=3", devices=1)


def test_losses_weights_and_validations_are_those_without_tiles(whole: Path, tiled: Path) -> None:
    """Patches and whole volumes of different shapes; BatchNorm's statistics too."""
    assert losses(tiled) == pytest.approx(losses(whole), rel=1e-9)
    assert largest_difference(tiled, whole) < 1e-6
    dice = [[r["validation"] for r in metrics(run) if "validation" in r] for run in (tiled, whole)]
    assert dice[0] == pytest.approx(dice[1], abs=1e-9)


def test_memory_is_what_the_plan_says_and_less(whole: Path, tiled: Path) -> None:
    plans = plans_from_json((tiled / "plan.json").read_text())
    assert [plan.choices.tile for plan in plans] == [3, 3]
    seen = 0
    for record, other in zip(steps(tiled), steps(whole), strict=True):
        plan = plans[record["stage"]]
        if list(plan.input_shape[2:]) == record["patch"] and record["step"] > 1 and "tensor_peak_bytes" in record:
            predicted = [load.tensor_bytes for load in plan.devices]
            assert record["tensor_peak_bytes"] == pytest.approx(predicted, rel=0.03)
            assert record["tensor_peak_bytes"][0] < other["tensor_peak_bytes"][0]
            seen += 1
    assert seen, "no step had the planned shape"


def test_predictions_are_those_without_tiles(tiled: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's weights, in tiles and as a run without them would use them."""
    images = sorted((folder / "data" / "imagesTs").glob("*.nii.gz"))
    plain = folder / "tiled-as-plain"
    shutil.copytree(tiled, plain)
    text = (plain / "config.yaml").read_text()
    assert "mode: tiled" in text
    (plain / "config.yaml").write_text(text.replace("mode: tiled", "mode: auto").replace("tile: 3", "tile: auto"))
    (plain / "plan.json").unlink()
    ran: list[int] = []
    parts = TileRunner.parts
    monkeypatch.setattr(
        TileRunner, "parts", lambda self, *a, **k: (ran.append(self.choices.tile), parts(self, *a, **k))[1]
    )
    out = [folder / "tiled-predicted", folder / "tiled-predicted-plain"]
    for run, where in zip((tiled, plain), out, strict=True):
        lampseg("predict", "--run", run, "--out", where, *images)
    for image in images:
        first, second = (np.asarray(nibabel.load(each / image.name).dataobj) for each in out)
        assert np.array_equal(first, second)
        assert len(np.unique(first)) > 1
    assert set(ran) == {3}
    assert len(ran) == len(images), "the first run predicts in tiles, the second does not"


def test_resumes_in_tiles_what_began_without(short: Path, folder: Path, whole: Path) -> None:
    run = folder / "tiled-resumed"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-00000005")
    resumed = train(short, run, "parallel.mode=tiled", devices=1, resume=True)
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-9)
    assert largest_difference(resumed, whole) < 1e-6


def test_several_devices_are_refused(short: Path, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    asked = ("train", short, "--run", folder / "tiled-two", "--devices", "2", "--parallel.mode", "tiled")
    assert "parallel.mode: tiled is for one device, there are 2: use mode spatial" in refused(capsys, *asked)

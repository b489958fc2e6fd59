"""`parallel.mode: spatial` from end to end: trains, resumes and predicts as one device does, and says what it takes."""

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nibabel
import numpy as np
import pytest
import yaml

from lampseg.cli import main
from lampseg.commands.plan import subject_of
from lampseg.commands.predict_model import trained_in_slabs
from lampseg.config import load_config
from lampseg.parallel.devices import parse_devices
from lampseg.partition import plans_from_json
from lampseg.training.plans import make_plans
from lampseg.training.subject import hardware_of
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
    tree["data"] |= {"spacing": [8, 8, 8], "cache": str(folder / "spatial-preprocessed")}
    tree["curriculum"] = [{"patch": 16, "batch": 2, "steps": 3}, {"patch": "whole", "batch": 2, "steps": 2, "lr": 5e-4}]
    tree["checkpoint"] = {"every_steps": 4}
    path = folder / "spatial.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def whole(short: Path, folder: Path) -> Path:
    return train(short, folder / "spatial-whole", devices=1)


@pytest.fixture(scope="module")
def slabs(short: Path, folder: Path) -> Path:
    return train(short, folder / "spatial-slabs", "parallel.mode=spatial", devices=2)


def test_losses_weights_and_validations_are_those_of_one_device(whole: Path, slabs: Path) -> None:
    """Patches and whole volumes of different shapes; BatchNorm's statistics too."""
    assert losses(slabs) == pytest.approx(losses(whole), rel=1e-9)
    assert largest_difference(slabs, whole) < 1e-6
    dice = [[r["validation"] for r in metrics(run) if "validation" in r] for run in (slabs, whole)]
    assert dice[0] == pytest.approx(dice[1], abs=1e-9)


def test_memory_is_what_the_plan_says(slabs: Path) -> None:
    plans = plans_from_json((slabs / "plan.json").read_text())
    assert [plan.choices.sharing for plan in plans] == [2, 2]
    seen = 0
    for record in [record for record in steps(slabs) if "tensor_peak_bytes" in record][1:]:
        plan = plans[record["stage"]]
        if list(plan.input_shape[2:]) == record["patch"]:
            predicted = [load.tensor_bytes for load in plan.devices]
            assert record["tensor_peak_bytes"] == pytest.approx(predicted, rel=0.03)
            seen += 1
    assert seen, "no step had the planned shape"


def test_two_volumes_on_two_slabs_each(short: Path, folder: Path, whole: Path) -> None:
    """Four processes; BatchNorm's statistics are joined over the copies of the network."""
    run = folder / "spatial-replicas"
    found = train(short, run, "parallel.mode=spatial", "parallel.replicas=2", devices=4)
    assert losses(found) == pytest.approx(losses(whole), rel=1e-9)
    assert plans_from_json((run / "plan.json").read_text())[1].choices.slabs.count(2) == 1
    assert largest_difference(found, whole) < 1e-6


def test_predictions_are_those_of_one_device(slabs: Path, folder: Path) -> None:
    images = sorted((folder / "data" / "imagesTs").glob("*.nii.gz"))
    out = [folder / f"spatial-predicted-{n}" for n in (1, 2)]
    for n, where in enumerate(out, start=1):
        lampseg("predict", "--run", slabs, "--out", where, "--devices", str(n), *images)
    for image in images:
        first, second = (np.asarray(nibabel.load(each / image.name).dataobj) for each in out)
        assert np.array_equal(first, second)
        assert len(np.unique(first)) > 1


def test_resumes_on_slabs_what_one_device_began(short: Path, folder: Path, whole: Path) -> None:
    run = folder / "spatial-resumed"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-00000005")
    resumed = train(short, run, "parallel.mode=spatial", devices=2, resume=True)
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-9)
    assert largest_difference(resumed, whole) < 1e-6


@pytest.fixture(scope="module")
def scarce(short: Path) -> str:
    """Two devices with so much memory that whole volumes fit only if something runs again."""
    peaks = []
    devices = parse_devices("2x1GiB")  # those that train, not the GPUs that are planned for
    for how in ("none", "all"):
        config = load_config(short, overrides={"parallel.mode": "spatial", "parallel.recompute": how})
        subject = replace(subject_of(config), devices=devices, hardware=hardware_of(config, devices))
        peaks.append(make_plans(subject)[1].peak_bytes)
    assert peaks[1] < peaks[0]
    return f"2x{(peaks[0] + peaks[1]) // 2}B"


@pytest.fixture(scope="module")
def again(short: Path, folder: Path, scarce: str) -> Path:
    run = folder / "spatial-again"
    lampseg("train", short, "--run", run, "--devices", scarce, "parallel.mode=spatial")
    return run


def test_what_runs_again_changes_nothing_but_the_memory(again: Path, whole: Path) -> None:
    plans = plans_from_json((again / "plan.json").read_text())
    assert plans[1].choices.recomputed
    assert losses(again) == pytest.approx(losses(whole), rel=1e-9)
    assert largest_difference(again, whole) < 1e-6
    seen = 0
    for record in [record for record in steps(again) if "tensor_peak_bytes" in record][1:]:
        plan = plans[record["stage"]]
        if list(plan.input_shape[2:]) == record["patch"]:
            predicted = [load.tensor_bytes for load in plan.devices]
            assert record["tensor_peak_bytes"] == pytest.approx(predicted, rel=0.03)
            seen += bool(plan.choices.recomputed)
    assert seen, "no step had the planned shape"


def test_a_resumed_run_runs_the_same_again(again: Path, short: Path, folder: Path, scarce: str, whole: Path) -> None:
    run = folder / "spatial-again-resumed"
    shutil.copytree(again, run)
    shutil.rmtree(run / "checkpoints" / "step-00000005")
    lampseg("train", short, "--run", run, "--devices", scarce, "--resume", "parallel.mode=spatial")
    assert (run / "plan.json").read_text() == (again / "plan.json").read_text()
    assert losses(run) == pytest.approx(losses(whole), rel=1e-9)


def test_a_plan_that_was_edited_by_hand(slabs: Path, short: Path, folder: Path, whole: Path) -> None:
    """Other slabs, and a module that runs again; nothing in the configuration speaks of slabs."""
    tree = json.loads((slabs / "plan.json").read_text())
    for plan in tree["plans"]:
        plan["choices"] |= {"slabs": [1, 2, 1], "recomputed": ["decoders.1", "encoders.0"]}
    edited, run = folder / "edited.json", folder / "spatial-edited"
    edited.write_text(json.dumps(tree))
    lampseg("train", short, "--run", run, "--devices", "2", "--plan", edited)
    for plan in plans_from_json((run / "plan.json").read_text()):
        assert plan.choices.slabs == (1, 2, 1)
        assert plan.choices.recomputed == ("decoders.1", "encoders.0")
    assert losses(run) == pytest.approx(losses(whole), rel=1e-9)
    assert trained_in_slabs(run, load_config(run / "config.yaml")), "and so are predictions made"


def test_a_plan_that_names_no_module(
    slabs: Path, short: Path, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    tree = json.loads((slabs / "plan.json").read_text())
    tree["plans"][1]["choices"]["recomputed"] = ["decoders.9"]
    edited = folder / "wrong.json"
    edited.write_text(json.dumps(tree))
    asked = ("train", short, "--run", folder / "spatial-wrong", "--devices", "2", "--plan", edited)
    text = refused(capsys, *asked)
    assert "plan 2 (curriculum.1, patch whole): choices.recomputed names 'decoders.9', which is no module" in text


def test_more_slabs_than_there_are(short: Path, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    asked = ("train", short, "--run", folder / "spatial-many", "--devices", "5", "--parallel.mode", "spatial")
    assert "can't be cut into 5 slabs: each needs at least the network's total stride" in refused(capsys, *asked)
    text = refused(capsys, *asked, "--parallel.slabs", "[2, 1, 1]")
    assert "2x1x1 slabs and 1 copies of the network are for 2 devices, there are 5" in text


@pytest.fixture(scope="module")
def mixed(short: Path, folder: Path) -> Path:
    """Two stages, each on two slabs."""
    return train(short, folder / "mixed", "parallel.mode=pipeline", "parallel.slabs=[2, 1, 1]", devices=4)


def test_stages_on_slabs_train_as_one_device_does(whole: Path, mixed: Path) -> None:
    assert losses(mixed) == pytest.approx(losses(whole), rel=1e-9)
    assert largest_difference(mixed, whole) < 1e-6
    dice = [[r["validation"] for r in metrics(run) if "validation" in r] for run in (mixed, whole)]
    assert dice[0] == pytest.approx(dice[1], abs=1e-9)


def test_stages_on_slabs_resume_what_one_device_began(short: Path, folder: Path, whole: Path) -> None:
    """Weights and the optimizer's numbers go to all ranks that share a stage."""
    run = folder / "mixed-resumed"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "step-00000005")
    resumed = train(short, run, "parallel.mode=pipeline", "parallel.slabs=[2, 1, 1]", devices=4, resume=True)
    assert losses(resumed) == pytest.approx(losses(whole), rel=1e-9)
    assert largest_difference(resumed, whole) < 1e-6


def test_memory_of_stages_on_slabs_is_what_the_plan_says(mixed: Path) -> None:
    plans = plans_from_json((mixed / "plan.json").read_text())
    assert [(plan.choices.devices, plan.choices.slabs) for plan in plans] == [(2, (2, 1, 1))] * 2
    seen = 0
    records = [record for record in steps(mixed) if "tensor_peak_bytes" in record]
    for before, record in pairwise(records):
        plan = plans[record["stage"]]
        # In a stage's first step the optimizer has no numbers yet.
        if list(plan.input_shape[2:]) == record["patch"] and before["stage"] == record["stage"]:
            predicted = [load.tensor_bytes for load in plan.devices]
            assert len(predicted) == len(record["tensor_peak_bytes"]) == 4
            for place in (slice(0, 2), slice(2, 4)):  # the fullest slab of each is planned
                assert max(record["tensor_peak_bytes"][place]) == pytest.approx(max(predicted[place]), rel=0.03)
            seen += 1
    assert seen, "no step had the planned shape"


def test_stages_on_slabs_predict_what_one_device_does(mixed: Path, folder: Path) -> None:
    images = sorted((folder / "data" / "imagesTr").glob("*.nii.gz"))[:2]
    out = [folder / f"mixed-predicted-{n}" for n in (1, 4)]
    for n, where in zip((1, 4), out):
        lampseg(
            "predict",
            "--run",
            mixed,
            "--out",
            where,
            "--devices",
            str(n),
            "--mirror",
            "x,z",
            "--mirror-swaps-pairs",
            *images,
        )
    found: set[int] = set()
    for image in images:
        first, second = (np.asarray(nibabel.load(each / image.name).dataobj) for each in out)
        assert np.array_equal(first, second)
        found |= set(np.unique(first).tolist())
    assert len(found) > 1


def test_plan_of_stages_on_slabs_is_shown(short: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["plan", str(short), "--devices", "4", "--parallel.mode", "pipeline", "--parallel.slabs", "[2, 1, 1]"])
    shown = capsys.readouterr().out
    assert "2 places of 2x1x1 slabs" in shown
    assert "slab 2.1.1 of 2x1x1" in shown
    text = refused(capsys, "plan", short, "--devices", "3", "--parallel.slabs", "[2, 1, 1]")
    assert "take a multiple of 2 devices, there are 3" in text


def test_windows_are_not_cut_into_slabs(short: Path, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """Said before anything is trained, not at the first validation."""
    asked = ("train", short, "--run", folder / "spatial-windows", "--devices", "2", "--parallel.mode", "spatial")
    text = refused(capsys, *asked, "--validation.window", "patch")
    assert "sliding windows are not cut into slabs" in text
    assert not (folder / "spatial-windows" / "metrics.jsonl").exists()

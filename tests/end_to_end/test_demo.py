"""The demo in miniature does every step of the full one and leaves what it promises."""

import contextlib
import io
import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import safetensors.torch
import yaml

from lampseg.networks import UNet
from tests.end_to_end.command import lampseg


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("demo") / "out"
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        lampseg("demo", "--out", out, "--scale", "tiny")
    assert "Mean Dice on the test cases" in said.getvalue()
    return out


@pytest.mark.timeout(300)
def test_table_holds_dice_and_seconds_of_the_three_ways(demo: Path) -> None:
    rows = json.loads((demo / "comparison.json").read_text())["rows"]
    assert len(rows) == 3
    text = (demo / "comparison.csv").read_text()
    for organ in ("BrainStem", "Chiasm", "Parotid_L", "Submandibular_R"):
        assert organ in text
    for name in ("whole", "windows", "windows-stage-1"):
        record = json.loads((demo / f"predictions-{name}" / "predictions.json").read_text())
        assert record["devices"] == 2
        assert all(item["seconds"] > 0 for item in record["predictions"])


def test_predictions_lie_on_the_images_grid(demo: Path) -> None:
    images = sorted((demo / "data" / "imagesTs").iterdir())
    assert len(images) == 2
    for image in images:
        scan, labels = nibabel.load(image), nibabel.load(demo / "predictions-whole" / image.name)
        assert scan.shape == labels.shape
        np.testing.assert_allclose(scan.affine, labels.affine)
        assert np.asarray(labels.dataobj).max() <= 9


def test_report_is_one_file_with_curves_plan_and_slices(demo: Path) -> None:
    page = (demo / "run" / "report.html").read_text()
    assert not re.search(r"""(?:src|href)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert page.count("data:image/") >= 4, "curves, a plan for each stage, slices"
    assert "whole volume, final weights" in page
    assert "Worst results" in page
    assert page.count('id="viewer-case-') == 1


def test_curriculum_was_planned_for_two_devices(demo: Path) -> None:
    plans = json.loads((demo / "run" / "plan.json").read_text())["plans"]
    assert [len(plan["stages"]) for plan in plans] == [2, 2, 2]
    assert [plan["input_shape"][2:] for plan in plans[:2]] == [[16] * 3, [32] * 3]
    lines = [json.loads(line) for line in (demo / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines if "loss" in line] == [0, 0, 1, 1, 2, 2]
    assert sum("validation" in line for line in lines) == 3


def test_checkpoint_loads_into_the_bare_network(demo: Path) -> None:
    options = yaml.safe_load((demo / "run" / "config.yaml").read_text())["network"]
    network = UNet(
        filters=options["filters"],
        norm=options["norm"],
        depth=options["depth"],
    )
    network.load_state_dict(safetensors.torch.load_file(demo / "run" / "checkpoints" / "best.safetensors"))

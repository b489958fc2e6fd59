"""Plans at the command line: shown, asked backwards, written, edited, trained with, or refused with the reason."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lampseg.commands.train import read_plans
from lampseg.partition.questions import MOST_DEVICES
from tests.end_to_end.command import lampseg, losses, metrics
from tests.end_to_end.small import refused, write_config, write_dataset

pytestmark = pytest.mark.timeout(300)
Capture = pytest.CaptureFixture[str]
NOWHERE = ("--shape", "64", "64", "48", "--classes", "3")
"""Instead of data."""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two curriculum stages on data of 16^3 voxels."""
    folder = tmp_path_factory.mktemp("planning")
    root = write_dataset(folder / "data")
    curriculum = [{"patch": 8, "batch": 4, "steps": 2}, {"patch": "whole", "batch": 1, "steps": 1}]
    return write_config(folder / "config.yaml", root, curriculum=curriculum, parallel={"devices": 2})


def shown(capsys: Capture, *arguments: object) -> str:
    capsys.readouterr()
    lampseg("plan", *arguments)
    return capsys.readouterr().out


def as_json(capsys: Capture, *arguments: object) -> list[dict[str, Any]]:
    plans = json.loads(shown(capsys, *arguments, "--json"))["plans"]
    assert isinstance(plans, list)
    return plans


def test_a_plan_says_what_each_device_holds_and_why(config: Path, capsys: Capture) -> None:
    text = shown(capsys, config, *NOWHERE, "--devices", "4x16GiB", "--parallel.mode", "pipeline")
    assert "curriculum stage 1: patch 8, batch 4" in text
    assert "curriculum stage 2: patch whole, batch 1" in text
    for words in (
        "16.00",
        "memory in GiB",
        "device  3",
        "forwards 0 1 2",
        "Between stages",
        "Considered, and why not taken",
    ):
        assert words in text, words


def test_the_largest_patch(config: Path, capsys: Capture) -> None:
    asked = (config, *NOWHERE, "--devices", "2x1035MiB", "--largest-patch")
    (plan,) = as_json(capsys, *asked)
    assert all(load["peak_bytes"] <= 1035 * 2**20 for load in plan["devices"])
    assert plan["input_shape"][2:] < [64, 64, 48]
    assert "the largest patch that fits" in shown(capsys, *asked)
    (whole,) = as_json(capsys, config, *NOWHERE, "--devices", "2x16GiB", "--largest-patch")
    assert whole["input_shape"][2:] == [64, 64, 48]
    assert "memory of the devices is not known" in refused(
        capsys, "plan", config, *NOWHERE, "--devices", "2", "--largest-patch"
    )


def test_the_fewest_devices(config: Path, capsys: Capture) -> None:
    (one,) = as_json(capsys, config, *NOWHERE, "--fewest-devices", "16GiB")
    assert one["choices"]["devices"] == 1
    (more,) = as_json(capsys, config, *NOWHERE, "--fewest-devices", "1056MiB", "--parallel.recompute", "none")
    assert 1 < more["choices"]["devices"] < MOST_DEVICES
    assert "not an amount of memory such as 16GiB" in refused(
        capsys, "plan", config, *NOWHERE, "--fewest-devices", "much"
    )
    assert "ask one at a time" in refused(
        capsys, "plan", config, *NOWHERE, "--fewest-devices", "16GiB", "--largest-patch"
    )


def test_devices_by_name_and_of_different_sizes(config: Path, capsys: Capture) -> None:
    plans = as_json(capsys, config, *NOWHERE, "--devices", "2xH100", "--parallel.mode", "pipeline")
    assert "h100" in plans[0]["hardware"]
    mixed = as_json(capsys, config, *NOWHERE, "--devices", "1x16GiB+1x24GiB", "--parallel.mode", "pipeline")
    assert [load["memory_bytes"] for load in mixed[0]["devices"]] == [16 * 2**30, 24 * 2**30]


def test_what_does_not_fit_lists_what_would_help(config: Path, capsys: Capture) -> None:
    said = refused(capsys, "plan", config, *NOWHERE, "--devices", "2x1030MiB", "--parallel.recompute", "none")
    lines = said.splitlines()
    assert "does not fit" in lines[0]
    assert any("parallel.recompute: auto" in line for line in lines)
    assert any("precision: bfloat16" in line for line in lines)
    assert any("devices of" in line for line in lines)


@pytest.fixture(scope="module")
def written(config: Path) -> Path:
    """The plans that `plan --json` writes, on two devices that share the network."""
    path = config.parent / "plans.json"
    with path.open("w") as file, contextlib.redirect_stdout(file):
        lampseg("plan", config, "--json", "--parallel.mode", "pipeline")
    return path


def edited(written: Path, name: str, **choices: Any) -> Path:
    """The plans, with choices of the second one changed."""
    tree = json.loads(written.read_text())
    tree["plans"][1]["choices"] |= choices
    path = written.with_name(name)
    path.write_text(json.dumps(tree))
    return path


def test_an_edited_plan_is_trained_with(config: Path, written: Path, tmp_path: Path) -> None:
    """And the losses are those of the planner's plan."""
    cut = json.loads(written.read_text())["plans"][1]["choices"]["cuts"][0]
    graph_start = json.loads(written.read_text())["plans"][1]["stages"][0]["first"]
    assert graph_start == 0
    path = edited(written, "edited.json", recompute=["all", "none"])
    lampseg("train", config, "--run", tmp_path / "given", "--plan", path)
    lampseg("train", config, "--run", tmp_path / "own")
    assert losses(tmp_path / "given") == pytest.approx(losses(tmp_path / "own"), rel=1e-4)
    used = read_plans(tmp_path / "given" / "plan.json")
    assert used[1].choices.recompute == ("all", "none")
    assert used[1].choices.cuts == (cut,)
    assert used[1].stages[0].recompute == "all", "what follows from the choices is computed anew"


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"cuts": [3, 2]}, "choices.recompute has 2 entries for the 3 stages"),
        ({"cuts": [100000]}, "cut 100000: cuts must rise"),
        ({"replicas": 2}, "2 replicas share 1 micro-batch(es)"),
        ({"micro_batches": 7}, "choices.micro_batches is 7, the batch of 1 can be cut into exactly 1"),
        ({"schedule": "zigzag"}, "choices.schedule is 'zigzag'"),
    ],
)
def test_a_plan_that_can_not_be_executed(
    choices: dict[str, Any], words: str, config: Path, written: Path, tmp_path: Path, capsys: Capture
) -> None:
    path = edited(written, "faulty.json", **choices)
    said = refused(capsys, "train", config, "--run", tmp_path / "run", "--plan", path)
    assert words in said
    assert str(path) in said


def test_plans_for_something_else(config: Path, written: Path, tmp_path: Path, capsys: Capture) -> None:
    run = ("train", config, "--run", tmp_path / "run")
    said = refused(capsys, *run, "--plan", written, "--network.depth", "2")
    assert "plan 1 (curriculum.0, patch 8): was made for another network" in said
    tree = json.loads(written.read_text())
    (tmp_path / "one.json").write_text(json.dumps({"version": 2, "plans": tree["plans"][:1]}))
    assert "holds 1 plan(s), the curriculum has 2" in refused(capsys, *run, "--plan", tmp_path / "one.json")
    (tmp_path / "no.json").write_text("nothing")
    assert "not a list of plans" in refused(capsys, *run, "--plan", tmp_path / "no.json")
    assert "cannot be read" in refused(capsys, *run, "--plan", tmp_path / "absent.json")


def test_running_out_of_memory_leads_to_another_plan(config: Path, tmp_path: Path, capsys: Capture) -> None:
    """Two processes whose activations may take 5 MiB each; the first plan keeps more, the second recomputes."""
    tree = yaml.safe_load(config.read_text())
    tree["network"] = {"name": "tests.end_to_end.hungry.Hungry"}
    tree["curriculum"] = [{"patch": 16, "batch": 8, "micro_batches": 8, "steps": 2}]
    tree["parallel"] = {"devices": 2, "mode": "pipeline", "schedule": "gpipe", "timeout": 60}
    path = tmp_path / "hungry.yaml"
    path.write_text(yaml.safe_dump(tree))
    lampseg("train", path, "--run", tmp_path / "run")
    said = capsys.readouterr().out
    assert "ran out of memory in training of curriculum stage 1: the plan predicted" in said
    assert "Planning again with a margin" in said
    assert len(losses(tmp_path / "run")) == 2
    assert [record["step"] for record in metrics(tmp_path / "run") if "loss" in record] == [1, 2]
    (plan,) = read_plans(tmp_path / "run" / "plan.json")
    assert set(plan.choices.recompute) == {"all"}

"""A run folder is begun, found to hold something else, or continued only with what decides the weights unchanged."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lampseg.commands.run_folder import Task, begin_run, check_run_folder, check_writable, environment, read_task
from lampseg.config import Config, load_config, parse_config
from lampseg.errors import UserError

TASK = Task(("background", "liver"), (8, 8, 4))


def config(**changes: Any) -> Config:
    tree: dict[str, Any] = {
        "data": {"root": "data"},
        "curriculum": [{"patch": 8, "steps": 2}, {"patch": "whole", "steps": 1}],
    }
    for name, content in changes.items():
        tree[name] = {**tree.get(name, {}), **content} if isinstance(content, dict) else content
    return parse_config(tree)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was begun."""
    check_run_folder(tmp_path / "run", config(), resume=False)
    begin_run(tmp_path / "run", config(), TASK)
    return tmp_path / "run"


def test_what_a_run_says_of_itself(run: Path) -> None:
    assert read_task(run) == TASK
    assert load_config(run / "config.yaml") == config()
    assert {"lampseg", "torch", "monai", "python"} <= json.loads((run / "environment.json").read_text()).keys()
    assert environment()["devices"]
    assert sorted(path.name for path in run.iterdir()) == ["config.yaml", "environment.json", "task.json"]


def test_a_network_of_one_size_is_remembered(tmp_path: Path) -> None:
    task = Task(("background", "liver"), (32, 16, 32), window=(32, 16, 32))
    begin_run(tmp_path, config(), task)
    assert read_task(tmp_path) == task


def test_a_run_is_not_begun_twice(run: Path) -> None:
    with pytest.raises(UserError, match="already holds a run; continue it with --resume or choose another folder"):
        check_run_folder(run, config(), resume=False)
    check_run_folder(run, config(), resume=True)


@pytest.mark.parametrize("left", [[], ["preprocessed"], ["task.json", "environment.json"], [".writable.77"]])
def test_what_a_failed_beginning_leaves_does_not_matter(left: list[str], tmp_path: Path) -> None:
    for name in left:
        (tmp_path / name).touch()
    check_run_folder(tmp_path, config(), resume=False)


def test_other_files_are_not_mixed_with_a_run(tmp_path: Path) -> None:
    (tmp_path / "thesis.doc").touch()
    with pytest.raises(
        UserError, match=r"is not empty \(there is thesis\.doc\); choose a new or empty folder for --run"
    ):
        check_run_folder(tmp_path, config(), resume=False)


@pytest.mark.parametrize("place", ["none", "empty"])
def test_nothing_to_resume(place: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"there is no run to resume \(no config\.yaml\); leave out --resume"):
        check_run_folder(tmp_path / place, config(), resume=True)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": {"filters": 64}}, "`network.filters` was None, now 64"),
        ({"network": {"kwargs": {"depth": 2}}}, "`network.kwargs.depth` was not there, now 2"),
        ({"curriculum": [{"patch": 8, "steps": 2}]}, "`curriculum.1.patch` was whole, now not there"),
        (
            {"curriculum": [{"patch": 8, "steps": 3}, {"patch": "whole", "steps": 1}]},
            "`curriculum.0.steps` was 2, now 3",
        ),
        ({"data": {"window": [0, 1]}}, "`data.window` was None, now [0.0, 1.0]"),
        ({"loss": {"focal": 1}}, "`loss.focal` was 0.5, now 1.0"),
        ({"sampling": {"positive": 0.5}}, "`sampling.positive` was 1.0, now 0.5"),
        ({"optimizer": {"kwargs": {"alpha": 0.5}}}, "`optimizer.kwargs.alpha` was not there, now 0.5"),
        ({"precision": "float64"}, "`precision` was float32, now float64"),
        ({"seed": 1}, "`seed` was 0, now 1"),
        ({"parallel": {"micro_batches": 2}}, "`parallel.micro_batches` was auto, now 2"),
    ],
)
def test_what_decides_the_weights_cannot_be_changed(changes: dict[str, Any], said: str, run: Path) -> None:
    with pytest.raises(UserError, match=re.escape(said)) as caught:
        check_run_folder(run, config(**changes), resume=True)
    assert "was begun with another configuration" in str(caught.value)
    assert f"Resume with {run / 'config.yaml'}, or begin a new run" in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel": {"devices": 4, "schedule": "gpipe"}},
        {"data": {"cache": "elsewhere"}},
        {"checkpoint": {"every_steps": 3}},
        {"validation": {"every_steps": 3}},
    ],
)
def test_how_a_run_is_run_can_be_changed(changes: dict[str, Any], run: Path) -> None:
    check_run_folder(run, config(**changes), resume=True)


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the way stops everybody, /proc (or its absence, outside Linux) root as well."""
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file; choose a folder for --run"):
        check_run_folder(tmp_path / "file", config(), resume=False)
    for place in (tmp_path / "file" / "below", Path("/proc/lampseg")):
        with pytest.raises(UserError, match=r"cannot be written .*; free space or choose another folder for --run"):
            check_run_folder(place, config(), resume=False)
        with pytest.raises(UserError, match="cannot be written"):
            begin_run(place, config(), TASK)
    check_writable(tmp_path / "new" / "folder", option="--out")
    assert list((tmp_path / "new" / "folder").iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"classes": 3, "stride": [1, 1, 1]}', '{"classes": [], "stride": [1]}']
)
def test_folders_that_are_no_runs(content: str, tmp_path: Path) -> None:
    (tmp_path / "task.json").write_text(content)
    with pytest.raises(UserError, match=r"not the folder of a run, .*give the folder that `lampseg train --run` wrote"):
        read_task(tmp_path)
    with pytest.raises(UserError, match="not the folder of a run"):
        read_task(tmp_path / "none")

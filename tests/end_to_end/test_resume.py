"""A run that is killed: the whole job ends at once, says why, leaves no process, and continues where it was."""

import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.end_to_end.command import (
    LAMPSEG,
    Finished,
    alive,
    gone,
    losses,
    metrics,
    running,
    steps,
    train,
)

pytestmark = pytest.mark.timeout(600)

LIMIT = 30.0
"""Seconds in which a job has to end after one of its processes did."""
ONE_STAGE = ("parallel.mode=pipeline", "curriculum=[{patch: 16, batch: 4, steps: 500}]", "data.validation=0")
"""Where it does not matter what is trained: one plan is made sooner than three; step 500 is never reached."""


@dataclass(frozen=True)
class Interrupted:
    """A run of which one process was ended."""

    run: Path
    finished: Finished
    workers: dict[int, int]
    left: bool
    """Whether a process was left."""


@pytest.fixture(scope="module")
def killed(config: Path, folder: Path) -> Interrupted:
    """Two devices; rank 1 is killed (SIGKILL) after step 12, two steps behind the last checkpoint."""
    run = folder / "killed"
    command = (*LAMPSEG, "train", config, "--run", run, "--devices", "2")
    with running(command, folder=folder / "killed.log") as started:
        started.until(lambda: len(steps(run)) >= 12)
        workers = started.workers()
        os.kill(workers[1], signal.SIGKILL)
        finished = started.finish(limit=LIMIT)
        left = not gone(list(workers.values()), limit=1)
    return Interrupted(run, finished, workers, left)


def copy(run: Path, name: str) -> Path:
    return shutil.copytree(run, run.with_name(name))


def assert_same_run(resumed: Path, uninterrupted: Path, *, tolerance: float) -> None:
    """The same lines in the same order, none twice, none missing; the same weights."""
    expected, found = metrics(uninterrupted), metrics(resumed)
    assert [(r["step"], r["stage"], r["epoch"], "loss" in r) for r in found] == [
        (r["step"], r["stage"], r["epoch"], "loss" in r) for r in expected
    ]
    assert losses(resumed) == pytest.approx(losses(uninterrupted), rel=tolerance)
    dice = [[r["validation"] for r in metrics(run) if "validation" in r] for run in (resumed, uninterrupted)]
    assert dice[0] == pytest.approx(dice[1], abs=1e-4)
    weights = [load_file(run / "checkpoints" / "stage-3.safetensors") for run in (resumed, uninterrupted)]
    for name, tensor in weights[1].items():
        assert float((weights[0][name] - tensor).abs().max()) <= 1e-3 * float(tensor.abs().max())


def test_a_killed_rank_ends_the_job_with_the_cause(killed: Interrupted) -> None:
    assert sorted(killed.workers) == [0, 1]
    assert killed.finished.code == 1
    last = killed.finished.err.strip().splitlines()[-1]
    assert last.startswith("lampseg: rank 1 was killed by SIGKILL")
    assert "--resume" in last
    assert not killed.left
    assert 12 <= len(steps(killed.run)) < 20
    assert not (killed.run / "report.html").exists(), "looks finished"


def test_resume_on_two_devices_continues_exactly(killed: Interrupted, config: Path, on_two: Path) -> None:
    run = train(config, copy(killed.run, "resumed-on-two"), devices=2, resume=True)
    assert_same_run(run, on_two, tolerance=1e-7)
    assert (run / "report.html").is_file()


def test_resume_on_one_device(killed: Interrupted, config: Path, on_two: Path) -> None:
    """Also after a crash of the machine: a cut-off last line, and a draft of a checkpoint."""
    copied = copy(killed.run, "resumed-on-one")
    with (copied / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99, "sta')
    (copied / "checkpoints" / ".step-00000015.tmp").mkdir()
    (copied / "checkpoints" / ".step-00000015.tmp" / "network.safetensors").write_bytes(b"half")
    run = train(config, copied, devices=1, resume=True)
    assert_same_run(run, on_two, tolerance=1e-4)
    assert not list((run / "checkpoints").glob(".*"))


def test_a_rank_that_raises_ends_the_job_with_the_first_cause(config: Path, folder: Path) -> None:
    run = folder / "raises"
    network = "network={name: tests.end_to_end.faulty.BreaksOnRankOne}"
    command = (*LAMPSEG, "train", config, "--run", run, "--devices", "2", network, *ONE_STAGE)
    with running(command, folder=folder / "raises.log", python_path=[Path(__file__).parents[2]]) as started:
        started.until(lambda: len(steps(run)) >= 1)
        workers = list(started.workers().values())
        finished = started.finish(limit=LIMIT)
        assert gone(workers, limit=1)
    assert finished.code == 1
    assert finished.err.strip().splitlines()[-1] == "lampseg: rank 1 ArithmeticError: broken on purpose"
    assert 'raise ArithmeticError("broken on purpose")' in finished.err, "no traceback"


def test_ctrl_c_ends_all(config: Path, folder: Path) -> None:
    """It reaches the launcher only, as when it comes from a notebook or a script."""
    finished = asked_to_end(config, folder / "ctrl-c", signal.SIGINT, after=1)
    assert finished.code == 130
    assert "Traceback" not in finished.err


def test_a_batch_systems_request_ends_all(config: Path, folder: Path) -> None:
    finished = asked_to_end(config, folder / "asked", signal.SIGTERM, after=0)
    assert finished.code == 1
    assert finished.err.strip() == "lampseg: stopped by SIGTERM, and the workers with it"


def asked_to_end(config: Path, run: Path, number: signal.Signals, *, after: int) -> Finished:
    """Sends a signal to the launcher once there are its workers and so many steps."""
    command = (*LAMPSEG, "train", config, "--run", run, "--devices", "2", *ONE_STAGE)
    with running(command, folder=run.with_name(f"{run.name}.log")) as started:
        started.until(lambda: len(started.workers()) == 2 and len(steps(run)) >= after)
        workers = list(started.workers().values())
        os.kill(started.process.pid, number)
        finished = started.finish(limit=LIMIT)
        assert gone(workers, limit=1)
    return finished


@pytest.mark.parametrize("when", ["starting", "training"])
def test_a_killed_launcher_leaves_no_orphans(config: Path, folder: Path, when: str) -> None:
    run = folder / f"orphans-{when}"
    command = (*LAMPSEG, "train", config, "--run", run, "--devices", "2", *ONE_STAGE)
    with running(command, folder=folder / f"orphans-{when}.log") as started:
        started.until(lambda: len(started.workers()) == 2 and (when == "starting" or len(steps(run)) >= 1))
        workers = list(started.workers().values())
        assert all(alive(pid) for pid in workers)
        started.process.kill()
        started.process.wait()
        try:
            assert gone(workers)
        finally:
            for pid in workers:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)

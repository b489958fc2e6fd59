"""Runs the command `lampseg`: in this process, or in another that can be watched and killed and never stays behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lampseg.cli import main

LAMPSEG = (sys.executable, "-m", "lampseg")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
LIMIT = 120.0
"""Seconds that one command may take."""


@dataclass(frozen=True)
class Finished:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float


class Running:
    """A command under way; its standard output and error go to files in `folder`."""

    def __init__(self, command: Sequence[str | Path], *, folder: Path, python_path: Sequence[Path] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._out, self._err = folder / "stdout", folder / "stderr"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
        paths = [*(str(path) for path in python_path), os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        self._begun = time.monotonic()
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [str(part) for part in command], stdout=out, stderr=err, cwd=folder, env=environment
            )

    def workers(self) -> dict[int, int]:
        """Process ids of the running workers, by rank."""
        found = {}
        for pid in _children(self.process.pid):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
                found |= {int(v.removeprefix(b"RANK=")): pid for v in variables if v.startswith(b"RANK=")}
        return found

    def until(self, condition: Callable[[], bool], *, limit: float = LIMIT) -> None:
        """Waits until the condition holds while the command is running."""
        deadline = time.monotonic() + limit
        while not condition():
            assert self.process.poll() is None, f"ended too early, {self.process.returncode}: {self.read()}"
            assert time.monotonic() < deadline, f"nothing within {limit} s: {self.read()}"
            time.sleep(0.02)

    def finish(self, *, limit: float = LIMIT) -> Finished:
        """Waits for the end; a command that exceeds the limit is killed, and the test fails."""
        begun = time.monotonic()
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired as error:
            self.end()
            raise AssertionError(f"not ended within {limit} s: {self.read()}") from error
        return Finished(self.process.returncode, *self.read(), time.monotonic() - begun)

    def read(self) -> tuple[str, str]:
        """Standard output and error so far."""
        return self._out.read_text(), self._err.read_text()

    def end(self) -> None:
        """Kills the command and its workers, whatever their state."""
        for pid in [*self.workers().values(), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@contextlib.contextmanager
def running(command: Sequence[str | Path], *, folder: Path, python_path: Sequence[Path] = ()) -> Iterator[Running]:
    """A command that is under way inside the `with` block and certainly ended after it."""
    started = Running(command, folder=folder, python_path=python_path)
    try:
        yield started
    finally:
        started.end()


def succeed(command: Sequence[str | Path], *, folder: Path, python_path: Sequence[Path] = ()) -> Finished:
    """Runs a command to its end, which must be a success."""
    with running(command, folder=folder, python_path=python_path) as started:
        finished = started.finish()
    assert finished.code == 0, f"{finished.code}: {finished.out[-3000:]}\n{finished.err[-3000:]}"
    return finished


def lampseg(*arguments: str | Path) -> None:
    """Runs the command in this process, which saves seconds of imports; with several devices it starts the workers."""
    main([str(argument) for argument in arguments])


def train(config: Path, run: Path, *overrides: str, devices: int, resume: bool = False) -> Path:
    """`lampseg train`; returns the run folder. Overrides read `field=value`."""
    options = ["--resume"] if resume else []
    lampseg("train", config, "--run", run, "--devices", str(devices), *options, *overrides)
    return run


def metrics(run: Path) -> list[dict[str, Any]]:
    """The complete lines of metrics.jsonl."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def steps(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl that are optimizer steps."""
    return [record for record in metrics(run) if "loss" in record]


def losses(run: Path) -> list[float]:
    """Of every optimizer step, in order."""
    return [record["loss"] for record in steps(run)]


def alive(pid: int) -> bool:
    """Whether a process runs (one that ended and was not yet collected does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pids: Sequence[int], *, limit: float = 10.0) -> bool:
    """Whether all processes end within the limit."""
    deadline = time.monotonic() + limit
    while any(alive(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                if int((path / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent:
                    found.append(int(path.name))
    return found

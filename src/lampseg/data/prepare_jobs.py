"""Several cases prepared at a time, each by a process of its own (`python -m lampseg.data.prepare_jobs`)."""

import contextlib
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lampseg
from lampseg.config import DataConfig
from lampseg.data.case_files import image_geometry
from lampseg.data.dataset import Case
from lampseg.data.preprocess import prepare_case
from lampseg.data.volume import spacing_of
from lampseg.errors import UserError
from lampseg.hardware.machine import cores, threads_per_process

WORTH_IT = 200 * 10**6
"""Voxels below which processes are not worth their start (they import PyTorch and MONAI)."""
BYTES_PER_VOXEL = 60
"""That preparing takes for each channel, of the larger of the file's and the network's grid (measured: 58)."""


def jobs_for(cases: Sequence[Case], data: DataConfig) -> int:
    """How many processes prepare these cases: `data.jobs`, or as many as cores, free memory and work allow."""
    if data.jobs != "auto":
        return min(data.jobs, len(cases))
    if len(cases) < 2:
        return 1
    sizes = [_voxels(case, data) for case in cases]
    if sum(sizes) < WORTH_IT:
        return 1
    fits = int(0.5 * _free_memory() / (max(sizes) * BYTES_PER_VOXEL))
    return max(1, min(len(cases), cores(), fits))


def in_processes(cases: Sequence[Case], classes: int, data: DataConfig, folder: Path, *, jobs: int) -> Iterator[Case]:
    """Prepares the cases in `jobs` processes; yields each when it is ready. All processes end with the iterator.

    Raises:
        UserError: the first fault of a case; a process was killed.
    """
    waiting: queue.SimpleQueue[Case] = queue.SimpleQueue()
    for case in cases:
        waiting.put(case)
    done: queue.SimpleQueue[Case | UserError] = queue.SimpleQueue()
    processes = [_start(jobs) for _ in range(jobs)]

    def serve(process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                case = waiting.get_nowait()
                fault = _ask(process, case, (case, classes, data, folder))
                done.put(case if fault is None else UserError(fault))

    try:
        for process in processes:
            threading.Thread(target=serve, args=(process,), daemon=True).start()
        for _ in cases:
            found = done.get()
            if isinstance(found, UserError):
                raise found
            yield found
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start(jobs: int) -> subprocess.Popen[bytes]:
    source = str(Path(lampseg.__file__).parents[1])
    threads = str(threads_per_process(jobs))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [source, os.environ.get("PYTHONPATH")])),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
    }
    command = [sys.executable, "-m", __name__]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _ask(process: subprocess.Popen[bytes], case: Case, task: tuple[Any, ...]) -> str | None:
    """The fault of a case, None if it is prepared."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        pickle.dump(task, process.stdin)
        process.stdin.flush()
        fault: str | None = pickle.load(process.stdout)
    except (OSError, EOFError, pickle.UnpicklingError):
        return (
            f"{case.image}: the process that prepared it has ended (exit code {process.wait()}), perhaps for want of "
            "memory; set data.jobs to 1"
        )
    return fault


def _voxels(case: Case, data: DataConfig) -> int:
    """Of all channels, on the larger of the two grids; 0 if the header can't be read: reading says what is wrong."""
    try:
        shape, affine = image_geometry(case.images, voxel_size=data.voxel_size)
    except UserError:
        return 0
    there = math.prod(shape)
    if data.spacing is None:
        return there
    return int(there * max(1.0, math.prod(spacing_of(affine)) / math.prod(data.spacing)))


def _free_memory() -> int:
    """Bytes that can be had without swapping; no limit is known where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return 2**63


def _serve() -> None:
    """Prepares what comes through standard input until it is closed, and answers each with its fault or None."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get among the answers
    while True:
        try:
            task = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        fault = None
        try:
            prepare_case(*task)
        except UserError as error:
            fault = str(error)
        pickle.dump(fault, answers)
        answers.flush()


if __name__ == "__main__":
    _serve()

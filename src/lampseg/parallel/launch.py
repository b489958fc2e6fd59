"""Starts one process per device (torch elastic, as torchrun does) and reports the first cause if one fails."""

import contextlib
import ctypes
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lampseg.errors import OutOfMemory, UserError
from lampseg.hardware.machine import threads_per_process

USER_ERROR = 2
FAILURE = 1
NO_MEMORY = 4
"""Of a worker process, seen by its launcher alone."""

_PREPARED = "LAMPSEG_PREPARED"
_LAUNCHER = "LAMPSEG_LAUNCHER"

# A rank that loses its peer is not the first cause: it waits this long (seconds) for the one that is to be noticed.
_GRACE = 5.0
_LOST_PEER = re.compile(
    r"closed by peer|connection reset|broken pipe|connection refused|socket|timed out|NCCL|remote process exited",
    re.IGNORECASE,
)


class WorkerError(RuntimeError):
    """A worker process failed; the message says which and why."""


def is_worker() -> bool:
    """Whether this process was started by torchrun (or by `launch`) as one of several."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(arguments: Sequence[str], *, processes: int) -> None:
    """Runs `python -m lampseg ARGUMENTS` on `processes` processes of this machine and waits for all of them.

    Raises:
        UserError: a worker ended with a user's error.
        OutOfMemory: a worker ran out of memory.
        WorkerError: a worker failed or was killed, or this process was asked to end; all workers have been stopped.
        KeyboardInterrupt: Ctrl-C; all workers have been stopped.
    """
    for name in ("torch.distributed.elastic", *logging.root.manager.loggerDict):
        if name.startswith("torch.distributed.elastic"):  # some have a level of their own
            logging.getLogger(name).setLevel(logging.CRITICAL)
    environment = {
        # Read once, as a process starts. Waiting threads that spin would starve the others.
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_per_process(processes))),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "passive"),
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5"),
        _PREPARED: "1",
        _LAUNCHER: str(os.getpid()),
    }
    with tempfile.TemporaryDirectory(prefix="lampseg_") as folder, _environment(environment), _signal_handlers_kept():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=folder),  # the workers leave their errors there
        )
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "lampseg", *arguments)
        except ChildFailedError as error:
            failures = list(error.failures.values())
            first = min(failures, key=lambda failure: (_rank_of_cause(failure), failure.timestamp))
            message = _message(first)
            if first.exitcode == NO_MEMORY:
                raise OutOfMemory(message) from None
            if first.exitcode == USER_ERROR:
                raise UserError(message) from None
            raise WorkerError(f"rank {first.local_rank} {message}") from None
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            raise WorkerError(f"stopped by {error.sigval.name}, and the workers with it") from None


def prepared_by_launcher() -> bool:
    """Whether this is a worker of `launch`, whose caller has prepared the run already."""
    return _PREPARED in os.environ


def run_worker(main: Callable[[], None]) -> None:
    """Runs one worker's part; on any error it leaves a record for the launcher and ends the process at once.

    The process ends through `os._exit`: an ordinary exit would wait for communication that no longer comes.
    """
    _die_with_parent()
    handler = get_error_handler()
    handler.initialize()
    try:
        main()
    except BaseException as error:  # every end of a worker must leave its record
        if isinstance(error, SystemExit) and error.code in (None, 0):
            raise
        lost = isinstance(error, RuntimeError) and bool(_LOST_PEER.search(str(error)))
        if lost:
            time.sleep(_GRACE)
        handler.record_exception(error)
        if not (isinstance(error, UserError) or interrupted(error)):
            traceback.print_exc()
        elif isinstance(error, UserError) and not prepared_by_launcher():
            sys.stderr.write(f"lampseg: {error}\n")  # torchrun would only show its table of failures
        sys.stdout.flush()
        sys.stderr.flush()
        if isinstance(error, OutOfMemory):
            os._exit(NO_MEMORY)
        os._exit(USER_ERROR if isinstance(error, UserError) else FAILURE)


def interrupted(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or came of it: torch puts a mode aside while it calls it, and then can't leave it."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _rank_of_cause(failure: ProcessFailure) -> int:
    if failure.exitcode == -signal.SIGTERM:
        return 2  # stopped by the launcher because another had failed
    return 1 if _LOST_PEER.search(_message(failure)) and failure.exitcode > 0 else 0


def _message(failure: ProcessFailure) -> str:
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        hint = " (often the system's answer to too little memory)" if name == "SIGKILL" else ""
        return f"was killed by {name}{hint}; the others were stopped. `--resume` continues from the last checkpoint"
    data = failure.error_file_data if isinstance(failure.error_file_data, dict) else {}
    message = data.get("message", failure.message)
    text = message.get("message", "") if isinstance(message, dict) else str(message)
    return text.removeprefix("UserError: ").removeprefix("OutOfMemory: ") or f"ended with exit code {failure.exitcode}"


def _die_with_parent() -> None:
    """Asks Linux to end this process when its launcher dies, so that no orphan goes on computing."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
        launcher = os.environ.get(_LAUNCHER)
        if launcher is not None and os.getppid() != int(launcher):
            os._exit(FAILURE)  # it died while this process was starting


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Sets environment variables, which the workers inherit, and puts the old ones back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Puts back the handlers that torch elastic replaces: Ctrl-C after training is a KeyboardInterrupt again."""
    if threading.current_thread() is not threading.main_thread():
        yield  # elastic replaces none here
        return
    before = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Starts one process per device (torch elastic, as torchrun does) and reports the first cause if one fails."""

import ctypes
import logging
import os
import re
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Sequence

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure, get_error_handler
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from lampseg.errors import UserError
from lampseg.parallel.devices import threads_per_process

USER_ERROR = 2
FAILURE = 1

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
        WorkerError: a worker failed or was killed; the others have been stopped.
    """
    # Set before the processes start: OpenMP reads them once. Waiting threads that spin would starve the others.
    os.environ.setdefault("OMP_NUM_THREADS", str(threads_per_process(processes)))
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "5")
    os.environ["LAMPSEG_PREPARED"] = "1"  # the workers need not prepare the run again
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
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
    )
    try:
        elastic_launch(config, sys.executable)("-u", "-m", "lampseg", *arguments)
    except ChildFailedError as error:
        failures = list(error.failures.values())
        first = min(failures, key=lambda failure: (_rank_of_cause(failure), failure.timestamp))
        message = _message(first)
        if first.exitcode == USER_ERROR:
            raise UserError(message) from None
        raise WorkerError(f"rank {first.local_rank} {message}") from None


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
        if not isinstance(error, UserError):
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(USER_ERROR if isinstance(error, UserError) else FAILURE)


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
    return text.removeprefix("UserError: ") or f"ended with exit code {failure.exitcode}"


def _die_with_parent() -> None:
    """Asks Linux to end this process when its launcher dies, so that no orphan goes on computing."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)

"""Runs a function on several processes that join one world with gloo, as `lampseg train` starts them."""

import os
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from lampseg.parallel.world import membership


def run_ranks(
    function: Callable[..., Any], size: int, *args: Any, threads: int = 1, device: str = "cpu", timeout: float = 1800
) -> list[Any]:
    """Calls `function(world, *args)` on `size` processes of `threads` threads; what each returned, in rank order.

    Raises:
        torch.multiprocessing.ProcessRaisedException: a process failed; all have been stopped.
        TimeoutError: they did not end in `timeout` seconds.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ["OMP_WAIT_POLICY"] = "passive"  # waiting threads that spin would starve the others
    os.environ["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as name:
        work = (function, size, port, threads, device, Path(name), timeout, args)
        context = mp.start_processes(_main, work, nprocs=size, join=False, daemon=True, start_method="spawn")
        deadline = time.monotonic() + timeout
        while not context.join(timeout=1):
            if time.monotonic() > deadline:
                for process in context.processes:
                    process.kill()
                raise TimeoutError(f"{function.__name__}: the processes did not end within {timeout} s")
        return [torch.load(Path(name) / f"result.{rank}", weights_only=False) for rank in range(size)]


def _main(
    rank: int,
    function: Callable[..., Any],
    size: int,
    port: int,
    threads: int,
    device: str,
    folder: Path,
    timeout: float,
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    with membership(device=device, timeout=timeout) as world:
        torch.save(function(world, *args), folder / f"result.{rank}")

"""Runs a function on several processes with gloo; a failure or a hang in one of them ends all and is reported."""

import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from lampseg.parallel.mesh import Mesh
from lampseg.parallel.world import Channels, World
from tests import warm


def run_ranks(function: Callable[..., Any], size: int, *args: Any, timeout: float = 120) -> list[Any]:
    """Calls `function(rank, *args)` on `size` processes and returns what each returned, in rank order."""
    context = warm.context()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = [
            context.Process(target=_main, args=(function, rank, size, folder, timeout, args), daemon=True)
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        deadline = time.monotonic() + timeout
        try:
            while any(process.is_alive() for process in processes):
                if any(process.exitcode not in (None, 0) for process in processes):
                    break
                assert time.monotonic() < deadline, f"the ranks did not end within {timeout} s"
                time.sleep(0.02)
            if any(process.exitcode != 0 for process in processes):
                time.sleep(0.3)  # the others may still be writing what they saw
        finally:
            for process in processes:
                process.kill()
                process.join()
        errors = [f"rank {path.suffix[1:]}:\n{path.read_text()}" for path in sorted(folder.glob("error.*"))]
        assert not errors, "\n".join(errors)
        codes = [process.exitcode for process in processes]
        assert codes == [0] * size, f"exit codes {codes}"
        return [torch.load(folder / f"result.{rank}", weights_only=False) for rank in range(size)]


def _main(
    function: Callable[..., Any], rank: int, size: int, folder: Path, timeout: float, args: tuple[Any, ...]
) -> None:
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
        torch.save(function(rank, *args), folder / f"result.{rank}")
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        (folder / f"error.{rank}").write_text(traceback.format_exc())
        raise


def sub_world(size: int) -> World | None:
    """A world of the first `size` ranks; every rank must call it; None on the others."""
    ranks = list(range(size))
    channels = Channels.create(lambda: dist.new_group(ranks))
    control = dist.new_group(ranks)
    rank = dist.get_rank()
    return World(rank, size, torch.device("cpu"), channels, control) if rank < size else None


def sub_mesh(replicas: int, devices: int) -> Mesh | None:
    """A mesh of the first ranks; every rank must call it; None on the others."""
    world = sub_world(replicas * devices)
    if replicas == 1:
        return None if world is None else Mesh(world, 1, devices)
    table = torch.arange(replicas * devices).view(replicas, devices)
    rows, columns = ([dist.new_group(ranks) for ranks in lines.tolist()] for lines in (table, table.T))
    if world is None:
        return None
    return Mesh(world, replicas, devices, rows[world.rank // devices], columns[world.rank % devices])

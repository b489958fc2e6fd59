"""A rank that fails in the middle of a step: the others end with an error at once, not at the timeout."""

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests import warm
from tests.equivalence.one_device import choices_of, runner_of
from tests.ranks import sub_mesh

SHAPES = [(1, 1, 8)] * 6
SIZE = 3


def _process(failing: Callable[[int, int], None], rank: int, folder: Path) -> None:
    """One stage of three, as a program would run it: on any error it leaves at once."""
    torch.set_num_threads(1)
    # The timeout is long: an end within seconds is not its doing.
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=SIZE, timeout=timedelta(seconds=300)
    )
    mesh = sub_mesh(1, SIZE)
    assert mesh is not None
    network = nn.Sequential(*(nn.Conv1d(1, 1, 3, padding=1) for _ in range(SIZE)))
    runner, _ = runner_of(mesh, network, choices_of(mesh, (1, 2)), shape=SHAPES[0])
    calls = 0

    def count(_module: nn.Module, _args: Any, _out: Any) -> None:
        nonlocal calls
        calls += 1
        failing(rank, calls)

    network[rank].register_forward_hook(count)
    try:
        for _ in range(1000):
            runner.step(SHAPES, load=lambda m: torch.ones(SHAPES[m]), loss=_mean)
    except RuntimeError:
        (folder / f"ended.{rank}").write_text(f"{time.time()}\n{traceback.format_exc()}")
        os._exit(1)


def _mean(_m: int, output: Any) -> Tensor:
    assert isinstance(output, Tensor)
    return output.mean()


def run(failing: Callable[[int, int], None], folder: Path) -> tuple[list[int | None], dict[int, tuple[float, str]]]:
    """Exit codes, and when and why each rank ended."""
    context = warm.context()
    processes = [context.Process(target=_process, args=(failing, rank, folder), daemon=True) for rank in range(SIZE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    ended = {}
    for path in folder.glob("ended.*"):
        when, _, why = path.read_text().partition("\n")
        ended[int(path.suffix[1:])] = (float(when), why)
    return codes, ended


def raises_in_a_forward(rank: int, calls: int) -> None:
    if rank == 1 and calls == 9:
        raise RuntimeError("the middle stage broke")


def is_killed(rank: int, calls: int) -> None:
    if rank == 2 and calls == 9:
        time.sleep(0.2)  # the others wait for it by then
        os.kill(os.getpid(), 9)


@pytest.mark.timeout(120)
def test_an_exception_ends_all_within_seconds() -> None:
    with tempfile.TemporaryDirectory() as name:
        codes, ended = run(raises_in_a_forward, Path(name))
    assert codes == [1, 1, 1]
    assert "the middle stage broke" in ended[1][1]
    for rank in (0, 2):
        assert ended[rank][0] - ended[1][0] < 10
        assert "the middle stage broke" not in ended[rank][1]


@pytest.mark.timeout(120)
def test_a_kill_ends_all_within_seconds() -> None:
    begun = time.time()
    with tempfile.TemporaryDirectory() as name:
        codes, ended = run(is_killed, Path(name))
    assert codes == [1, 1, -9]
    assert set(ended) == {0, 1}
    assert max(when for when, _ in ended.values()) - begun < 60

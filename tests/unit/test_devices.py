"""What `--devices` means: a count, the memory of each, and which texts are refused."""

import os
from typing import Any

import pytest
import torch

from lampseg.errors import UserError
from lampseg.hardware.machine import threads_per_process
from lampseg.parallel import devices
from lampseg.parallel.devices import parse_devices

GIB = 2**30


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets how many GPUs are visible, each of 10 GiB."""

    def see(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(devices, "_gpu_memory", lambda index: 10.0 * GIB)

    see(0)
    return see


@pytest.mark.parametrize(
    ("text", "count", "memory"),
    [
        (None, 1, None),
        (3, 3, None),
        ("2", 2, None),
        ("2x16GiB", 2, 16 * GIB),
        ("2 x 1.5 gib", 2, 1.5 * GIB),
        ("4x16G", 4, 16 * GIB),
        ("1x10GB", 1, 10e9),
        ("1x10KiB", 1, 10240),
        ("1x2TiB", 1, 2048 * GIB),
        ("1x1000000", 1, 1e6),
    ],
)
def test_texts(text: int | str | None, count: int, memory: float | None, gpus: Any) -> None:
    found = parse_devices(text)
    assert (found.count, found.kind) == (count, "cpu")
    assert found.memory == (None if memory is None else (memory,) * count)


@pytest.mark.parametrize(
    "text", ["0", 0, "-1", -1, "abc", "2x", "2y", "x16GiB", "2x16GiX", "2x-1GiB", "1.5", "", "9" * 5000]
)
@pytest.mark.parametrize("planning", [False, True])
def test_texts_that_are_refused(text: int | str, planning: bool, gpus: Any) -> None:
    with pytest.raises(
        UserError, match=r"--devices \(parallel\.devices\): '.*' is not a number of devices such as 2, or"
    ):
        parse_devices(text, planning=planning)


def test_gpus_are_used_if_there_are_any(gpus: Any) -> None:
    gpus(4)
    assert (parse_devices(None).count, parse_devices(None).kind) == (4, "cuda")
    assert parse_devices(2).memory == (10 * GIB, 10 * GIB)
    assert parse_devices("2x4GiB").memory == (4 * GIB, 4 * GIB)


def test_more_gpus_than_there_are_can_only_be_planned(gpus: Any) -> None:
    gpus(2)
    assert parse_devices("8x80GiB", planning=True).count == 8
    with pytest.raises(UserError, match=r"8 asked for, but 2 GPU\(s\) are visible; ask for at most 2"):
        parse_devices("8x80GiB")


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert [threads_per_process(count) for count in (1, 2, 4, 9)] == [3, 3, 1, 1]

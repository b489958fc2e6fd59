"""`--devices`: how many processes, of which kind, with how much memory each."""

import os
import re
from dataclasses import dataclass

import torch

from lampseg.errors import UserError

_UNITS = {"": 1, "B": 1, "MIB": 2**20, "GIB": 2**30, "MB": 10**6, "GB": 10**9, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class Devices:
    """What a run may use; one process per device."""

    count: int
    kind: str
    """cpu or cuda."""
    memory: tuple[float, ...] | None
    """Bytes of each device; None if not stated and not known."""


def parse_devices(text: int | str | None, *, planning: bool = False) -> Devices:
    """Understands `2`, `2x16GiB` and None (every visible GPU, else one CPU process).

    Args:
        planning: the devices need not exist here.

    Raises:
        UserError: not such a text, or more GPUs than are visible.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text is None:
        text = str(gpus or 1)
    match = re.fullmatch(r"\s*(\d+)\s*(?:[x*]\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*))?\s*", str(text))
    if not match or int(match[1]) < 1 or (match[3] or "").upper() not in _UNITS:
        raise UserError(f"devices: {text!r} is not a number of devices such as 2, or 2x16GiB to state their memory")
    count = int(match[1])
    memory = float(match[2]) * _UNITS[match[3].upper()] if match[2] else None
    if gpus and count > gpus and not planning:
        raise UserError(f"devices: {count} asked for, {gpus} GPU(s) visible: ask for at most {gpus}")
    kind = "cuda" if gpus else "cpu"
    if memory is None and gpus:
        return Devices(count, kind, tuple(_gpu_memory(i % gpus) for i in range(count)))
    return Devices(count, kind, None if memory is None else (memory,) * count)


def _gpu_memory(index: int) -> float:
    return float(torch.cuda.get_device_properties(index).total_memory)


def threads_per_process(processes: int) -> int:
    """Cores of this machine that one of several processes may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)

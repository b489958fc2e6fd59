"""`--devices`: how many processes, of which kind, with how much memory each."""

import os
import re
from dataclasses import dataclass

import torch

from lampseg.errors import UserError

_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", start=1):
    _UNITS |= {_letter: 1024**_power, f"{_letter}IB": 1024**_power, f"{_letter}B": 1000**_power}


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
    match = re.fullmatch(r"\s*(\d{1,9})\s*(?:[x*]\s*(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z]*))?\s*", str(text))
    if not match or int(match[1]) < 1 or (match[3] or "").upper() not in _UNITS:
        raise UserError(
            f"--devices (parallel.devices): {str(text)!r} is not a number of devices such as 2, or 2x16GiB to state "
            "the memory of each"
        )
    count = int(match[1])
    memory = float(match[2]) * _UNITS[match[3].upper()] if match[2] else None
    if gpus and count > gpus and not planning:
        raise UserError(
            f"--devices (parallel.devices): {count} asked for, but {gpus} GPU(s) are visible; ask for at most {gpus}"
        )
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

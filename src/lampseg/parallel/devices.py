"""`--devices`: how many processes, of which kind, with how much memory each."""

import re
from dataclasses import dataclass

import torch

from lampseg.errors import UserError
from lampseg.partition.presets import PRESETS

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
    hardware: str | None = None
    """The preset that was named, such as h100."""


def parse_devices(text: int | str | None, *, planning: bool = False) -> Devices:
    """Understands `2`, `2x16GiB`, `2x16GiB+1x24GiB`, `4xH100` and None (every visible GPU, else one CPU process).

    Args:
        planning: the devices need not exist here: with a stated memory or name, and no GPU here, GPUs are meant.

    Raises:
        UserError: not such a text, or more GPUs than are visible.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text is None:
        text = str(gpus or 1)
    groups = [_group(part, whole=str(text)) for part in str(text).split("+")]
    count = sum(group.count for group in groups)
    if gpus and count > gpus and not planning:
        raise UserError(
            f"--devices (parallel.devices): {count} asked for, but {gpus} GPU(s) are visible; ask for at most {gpus}"
        )
    names = {group.hardware for group in groups}
    stated = [group.memory is not None for group in groups]
    if len(names) > 1 or (any(stated) and not all(stated)):
        raise UserError(
            f"--devices (parallel.devices): {str(text)!r}: state the memory of every group, or of none; different "
            "makes of GPU can't be mixed"
        )
    (name,) = names
    elsewhere = planning and (name is not None or all(stated))
    kind = "cuda" if gpus or elsewhere else "cpu"
    memory: tuple[float, ...] | None = None
    if all(stated):
        memory = tuple(group.memory for group in groups for _ in range(group.count) if group.memory is not None)
    elif gpus:
        memory = tuple(_gpu_memory(i % gpus) for i in range(count))
    return Devices(count, kind, memory, name)


@dataclass(frozen=True)
class _Group:
    count: int
    memory: float | None
    hardware: str | None


def _group(part: str, *, whole: str) -> _Group:
    match = re.fullmatch(r"\s*(\d{1,9})\s*(?:[x*]\s*(.*?))?\s*", part)
    if match and int(match[1]) >= 1:
        if match[2] is None:
            return _Group(int(match[1]), None, None)
        memory = _bytes(match[2])
        if memory is not None:
            return _Group(int(match[1]), memory, None)
        preset = PRESETS.get(match[2].lower())
        if preset is not None:
            return _Group(int(match[1]), preset.memory, match[2].lower())
    raise UserError(
        f"--devices (parallel.devices): {whole!r} is not a number of devices such as 2, or 2x16GiB to state the memory "
        f"of each, or 2xNAME with one of {', '.join(PRESETS)}"
    )


def parse_memory(text: str, *, option: str) -> float:
    """Bytes of an amount such as 16GiB.

    Raises:
        UserError: it is none; `option` says where it was given.
    """
    memory = _bytes(text)
    if memory is None:
        raise UserError(f"{option}: {text!r} is not an amount of memory such as 16GiB")
    return memory


def _bytes(text: str) -> float | None:
    match = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([A-Za-z]*)\s*", text)
    if not match or match[2].upper() not in _UNITS or not float(match[1]):
        return None
    return float(match[1]) * _UNITS[match[2].upper()]


def _gpu_memory(index: int) -> float:
    return float(torch.cuda.get_device_properties(index).total_memory)

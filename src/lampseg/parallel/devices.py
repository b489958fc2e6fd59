"""`--devices`: how many processes, of which kind, with how much memory each."""

import re
from dataclasses import dataclass
from typing import Literal

import torch

from lampseg.errors import UserError
from lampseg.hardware.presets import names_of_cards, preset
from lampseg.units import parse_bytes

Kind = Literal["cpu", "cuda"]


@dataclass(frozen=True)
class Devices:
    """What a run may use; one process per device."""

    count: int
    kind: Kind
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
    kind: Kind = "cuda" if gpus or elsewhere else "cpu"
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
        memory = parse_bytes(match[2])
        if memory is not None:
            return _Group(int(match[1]), memory, None)
        if re.fullmatch(r"[A-Za-z]\w*(-\w+)?", match[2]) and match[2].lower() in names_of_cards():
            return _Group(int(match[1]), preset(match[2], kind="cuda").memory, match[2].lower())
    raise UserError(
        f"--devices (parallel.devices): {whole!r} is not a number of devices such as 2, or 2x16GiB to state the memory "
        f"of each, or 2xNAME with one of {', '.join(names_of_cards())}"
    )


def _gpu_memory(index: int) -> float:
    return float(torch.cuda.get_device_properties(index).total_memory)

"""Running out of memory: noticed, told with prediction and measurement, and learnt from for another plan."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from lampseg.errors import OutOfMemory
from lampseg.evaluation.tables import write_text
from lampseg.parallel.devices import Devices
from lampseg.partition import Plan
from lampseg.units import format_bytes

RECORD = "out_of_memory.json"
MARGIN = 1.2
"""The next plan needs so many times less than the one that failed."""
_SIGNS = ("can't allocate memory", "not enough memory", "out of memory")


@dataclass(frozen=True)
class Shortage:
    """What was found when a device ran out of memory."""

    rank: int
    stage: int
    """Of the curriculum; 0 is the first."""
    device: int
    """Place in the pipeline."""
    predicted_bytes: int
    """What the plan said this device needs."""
    measured_bytes: int
    """What it held at most until then."""
    during: str
    """What it did: training or validation."""

    def text(self) -> str:
        return (
            f"rank {self.rank} ran out of memory in {self.during} of curriculum stage {self.stage + 1}: the plan "
            f"predicted {format_bytes(self.predicted_bytes)} for it, it held {format_bytes(self.measured_bytes)} when "
            "it asked for more"
        )


@contextlib.contextmanager
def shortage_noticed(
    run: Path, plan: Plan, *, rank: int, stage: int, device: torch.device, held: Callable[[], int], during: str
) -> Iterator[None]:
    """Turns torch's errors of too little memory into OutOfMemory, and leaves a record in the run folder.

    Args:
        held: tells how many bytes the process holds at most since the step began, where the device does not.

    Raises:
        OutOfMemory: what ran within did.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, torch.OutOfMemoryError | MemoryError) or any(sign in str(error) for sign in _SIGNS)):
            raise
        measured = int(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else held()
        place = rank % (plan.choices.devices * plan.choices.sharing)
        found = Shortage(rank, stage, place, plan.devices[place].peak_bytes, measured, during)
        with contextlib.suppress(OSError):  # the message says the same
            write_text(run / RECORD, json.dumps(asdict(found)))
        raise OutOfMemory(
            f"{found.text()} ({str(error).strip().splitlines()[0] if str(error).strip() else 'no memory'})"
        ) from error


def read_shortage(run: Path) -> Shortage | None:
    """The record of the last shortage; None if it could not be left."""
    try:
        return Shortage(**json.loads((run / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def learnt(shortage: Shortage, devices: Devices) -> tuple[Devices, float]:
    """The devices and the margin to plan with next, so that the new plan needs MARGIN times less than the failed one.

    Where the memory of the devices was not known, it is taken to be what the failed plan needed.
    """
    if devices.memory is None:
        return replace(devices, memory=(float(shortage.predicted_bytes),) * devices.count), MARGIN
    limit = devices.memory[shortage.rank % len(devices.memory)]
    return devices, max(MARGIN, MARGIN * limit / shortage.predicted_bytes)

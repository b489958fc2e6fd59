"""The memory that a process used at most during a step."""

import contextlib
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak bytes of a step: on CUDA those of tensors, on the CPU those resident beyond what was there before.

    On the CPU the operating system's high-water mark is read (Linux; elsewhere the step's peak is 0). It includes
    what the memory allocator keeps for later, so it is an upper bound of what the tensors took.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._base = _resident("VmRSS")

    def reset(self) -> None:
        """Begins a step."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with contextlib.suppress(OSError):
                _RESET.write_text("5")  # sets the high-water mark back to what is resident now

    def read(self) -> int:
        """Peak bytes since `reset`."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        return max(0, _resident("VmHWM") - self._base)


def _resident(field: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)

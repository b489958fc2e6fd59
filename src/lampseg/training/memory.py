"""The memory that a process used at most during a step."""

import contextlib
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class PeakMemory:
    """Peak bytes of a step: on CUDA those of tensors, on the CPU `held` and what became resident after the first reset.

    On the CPU the operating system's high-water mark is read (Linux; elsewhere the step's peak is 0). It includes
    what the allocator and the convolution library keep for later, so it is an upper bound of what the tensors took.

    Args:
        held: bytes of the tensors that are there before the first step (parameters and buffers).
    """

    def __init__(self, device: torch.device, *, held: int = 0) -> None:
        self._device, self._held = device, held
        self._base: int | None = None

    def reset(self) -> None:
        """Begins a step."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            with contextlib.suppress(OSError):
                _RESET.write_text("5")  # sets the high-water mark back to what is resident now
            if self._base is None:  # not earlier: libraries that are loaded late are no part of a step
                self._base = _resident("VmRSS")

    def read(self) -> int:
        """Peak bytes since `reset`."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        assert self._base is not None, "reset comes first"
        return max(0, _resident("VmHWM") - self._base) + self._held if self._base else 0


def _resident(field: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)

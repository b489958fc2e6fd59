"""The memory that a process used at most during a step, and its tensors alone."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from lampseg.host_allocator import give_back
from lampseg.recording.live import LiveBytes

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
            if self._base is None:  # not earlier: libraries that are loaded late are no part of a step
                give_back()  # else a step that takes kept memory seems to take none
                self._base = _resident("VmRSS")
            with contextlib.suppress(OSError):
                _RESET.write_text("5")  # sets the high-water mark back to what is resident now

    def read(self) -> int:
        """Peak bytes since `reset`."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        assert self._base is not None, "reset comes first"
        return max(0, _resident("VmHWM") - self._base) + self._held if self._base else 0


class TensorPeak:
    """Most bytes of tensors that are alive at once in a step: what a plan predicts (`DeviceLoad.tensor_bytes`).

    On CUDA the allocator knows. On the CPU a mode counts, which costs time: it is on for `steps` steps only.
    """

    def __init__(self, device: torch.device, *, steps: int = 3) -> None:
        self._device, self._left = device, steps
        self._live: LiveBytes | None = None
        self.nbytes: int | None = None
        """Of the last step; None: not measured."""

    @contextlib.contextmanager
    def measure(self, held: Iterable[Tensor]) -> Iterator[None]:
        """Around a step.

        Args:
            held: the tensors that are there before it; read only if the step is measured.
        """
        self.nbytes = None
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            yield
            self.nbytes = int(torch.cuda.max_memory_allocated(self._device))
        elif self._left > 0:
            self._left -= 1
            self._live = live = LiveBytes(fake=False)  # a new shape is recorded within the step
            for tensor in held:
                live.add(tensor)
            try:
                with live:
                    yield
            finally:
                self._live = None
            self.nbytes = live.peak
        else:
            yield

    def noted(self, tensor: Tensor) -> Tensor:
        """Counts, and returns, a tensor that no operation made, such as one that shares NumPy's memory."""
        if self._live is not None:
            self._live.add(tensor)
        return tensor


def _resident(field: str) -> int:
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), 0)

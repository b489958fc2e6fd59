"""What a device is and how fast it is: a value that comes from this machine's calibration, or from a stated preset."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lampseg.hardware.machine import threads_per_process
from lampseg.hardware.rates import Rates
from lampseg.hardware.workspace import workspace_bytes
from lampseg.recording.kernel import Kernel
from lampseg.units import parse_bytes

Precision = Literal["float32", "bfloat16", "float64"]
ITEMSIZES = {"float32": 4, "bfloat16": 2, "float64": 8}
FLOAT64_TIMES = 2.0
"""How much slower than float32 float64 is taken to be where only float32 is known; bfloat16 counts as float32."""


@dataclass(frozen=True)
class Link:
    """Messages between two processes, and sums over all of them."""

    latency: float
    """Seconds of an empty message."""
    bytes_per_second: float
    """In one direction."""
    reduce_latency: float
    """Seconds of one of the 2 (ranks - 1) rounds of an all-reduce."""
    reduce_bytes_per_second: float
    """What each rank sends in an all-reduce, which is 2 (ranks - 1) / ranks times the data."""


@dataclass(frozen=True)
class Hardware:
    """One device of a machine that runs several processes at once, one on each device."""

    name: str
    kind: Literal["cpu", "cuda"]
    source: str
    """Where the figures come from, for the user."""
    processes: int
    """How many processes were measured together; 1 for a preset."""
    threads: int
    """Of each process; 1 on CUDA."""
    memory: float | None
    """Bytes usable on one device; None if not known."""
    reserve_bytes: float
    """What the library and its context take beside tensors."""
    link: Link
    rates: dict[Precision, Rates]

    def seconds(self, kernel: Kernel, precision: Precision = "float32") -> float:
        """Time of one call.

        A precision that was not measured counts as float32, float64 as twice that.
        """
        if kernel.kind == "message":
            return kernel.voxels * self.link.latency + kernel.nbytes / self.link.bytes_per_second
        if kernel.kind == "collective":  # linear in the bytes: the latency of each, and the bytes of all
            latencies = (kernel.voxels - 1) * self.all_reduce_seconds(0, kernel.taps)
            return latencies + self.all_reduce_seconds(kernel.nbytes, kernel.taps)
        rates, times = self._rates(precision)
        return times * rates.seconds(kernel, itemsize=ITEMSIZES[precision], fallback=self.kind == "cpu")

    def transfer_seconds(self, nbytes: float) -> float:
        """Time of one message between two ranks."""
        return self.link.latency + nbytes / self.link.bytes_per_second

    def all_reduce_seconds(self, nbytes: float, ranks: int) -> float:
        """Time to sum `nbytes` over the ranks, by the ring algorithm; 0 for one rank."""
        rounds = 2 * (ranks - 1)
        return rounds * (self.link.reduce_latency + nbytes / ranks / self.link.reduce_bytes_per_second)

    def optimizer_seconds(self, nbytes: float) -> float:
        """Time of one step of RMSprop for so many bytes of parameters (float32)."""
        return nbytes * self._rates("float32")[0].optimizer_seconds_per_byte

    def workspace_bytes(self, kernel: Kernel, precision: Precision = "float32") -> float:
        """What the convolution library allocates beside the tensors while the kernel runs."""
        return workspace_bytes(kernel, cuda=self.kind == "cuda", itemsize=ITEMSIZES[precision])

    def with_memory(self, memory: float | None) -> "Hardware":
        """The same device, said to have so many bytes."""
        return dataclasses.replace(self, memory=memory)

    def fault(self) -> str | None:
        """What makes these figures impossible; None if nothing does."""
        if "float32" not in self.rates:
            return "it has no rates for float32"
        figures = [
            self.link.bytes_per_second,
            self.link.reduce_bytes_per_second,
            *map(float, (self.processes, self.threads)),
        ]
        if min(figures) <= 0 or min(self.link.latency, self.link.reduce_latency, self.reserve_bytes) < 0:
            return f"{self.name}: a figure of the link or of the processes is not above 0"
        for precision, rates in self.rates.items():
            found = rates.fault()
            if found is not None:
                return f"{self.name}, {precision}: {found}"
        return None

    def _rates(self, precision: Precision) -> tuple[Rates, float]:
        if precision in self.rates:
            return self.rates[precision], 1.0
        return self.rates["float32"], FLOAT64_TIMES if precision == "float64" else 1.0


def hardware_for(*, kind: Literal["cpu", "cuda"], name: str | None = None, processes: int = 1) -> Hardware:
    """The calibration of this machine if one is stored and fits, else a preset; `source` says which.

    Args:
        kind: what the processes will compute on; the devices need not exist here.
        name: a preset such as h100, a memory size such as 24GiB (a generic card or, on the CPU, the CPU with so much
            memory), or the path of a calibration; None looks for this machine's own.
        processes: how many will compute at the same time.

    Raises:
        UserError: an unknown name, or a calibration that can't be read or does not fit.
    """
    from lampseg.hardware.calibration_file import find_calibration, is_path, read_calibration
    from lampseg.hardware.presets import generic_card, local_preset, preset

    threads = threads_of_each(kind, processes)
    if name is None:
        found = find_calibration(kind=kind, device=device_name(kind), processes=processes, threads=threads)
        return found or local_preset(kind, device=device_name(kind), threads=threads)
    if is_path(name):
        return read_calibration(Path(name), kind=kind, processes=processes, device=device_name(kind))
    memory = parse_bytes(name)
    if memory is None:
        return preset(name, kind=kind, threads=threads)
    if kind == "cuda":
        return generic_card(memory)
    return hardware_for(kind=kind, processes=processes).with_memory(memory)


def device_name(kind: str) -> str | None:
    """What this machine calls its device; None if it has none of that kind."""
    if kind == "cuda":
        return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "CPU"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def threads_of_each(kind: str, processes: int) -> int:
    """Threads with which each of the processes will compute, as `train` starts them."""
    if kind == "cuda":
        return 1
    stated = os.environ.get("OMP_NUM_THREADS", "")
    return int(stated) if stated.isdigit() and int(stated) > 0 else threads_per_process(processes)

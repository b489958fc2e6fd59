"""What is compared: one volume segmented whole, and by windows of 64^3, with the same weights."""

import csv
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.inference.host_memory import resident
from benchmarks.shared.networks import LARGE, Named
from lampseg.inference import SlidingWindow, segment

TABLES = Path(__file__).parents[1] / "paper_hardware" / "data"
STRIDE = (32, 32, 32)


@dataclass(frozen=True)
class Load:
    """A network, a volume, and on what."""

    network: Named
    size: tuple[int, int, int]
    device: str

    def __str__(self) -> str:
        return f"{self.network.title}, {'x'.join(map(str, self.size))}, {self.device}"


def windows(edge: int) -> dict[str, SlidingWindow | None]:
    size = (edge,) * 3
    return {
        "whole": None,
        f"{edge}^3, overlap 0": SlidingWindow(size, 0.0),
        f"{edge}^3, overlap 0.5": SlidingWindow(size, 0.5),
    }


def loads(*, quick: bool) -> list[Load]:
    """The paper's smallest and largest on a GPU; on the CPU the smallest of each kind."""
    if quick:
        small = Named("U-Net-4", "unet", {"filters": 4, "norm": "instance", "depth": 3})
        return [Load(small, (96, 64, 32), "cpu")]
    found = [Load(LARGE[name], (192, 128, 128), "cpu") for name in ("unet-32", "seunet-32")]
    if torch.cuda.is_available():
        found += [Load(LARGE[name], (352, 256, 288), "cuda") for name in ("unet-32", "seunet-128")]
    return found


def prepared(load: Load, window: SlidingWindow | None) -> Callable[[], dict[str, float]]:
    """In a process of its own: segments the volume, and says the peak of its memory above that of the weights."""
    device = torch.device(load.device)
    network = load.network.build(load.size).eval().to(device)
    image = torch.rand((1, *load.size), generator=torch.Generator().manual_seed(1))
    before = 0

    def step() -> dict[str, float]:
        nonlocal before
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        elif before == 0:
            before = resident()["now"]
        labels = segment(network, image, stride=STRIDE, window=window)
        assert labels is not None
        if device.type == "cuda":
            torch.cuda.synchronize()
            return {"peak": float(torch.cuda.max_memory_allocated() - before)}
        return {"peak": float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)}

    return step


def paper() -> list[dict[str, str | float]]:
    """The paper's seconds for patches of 64^3 over those of the largest input, by data set and network."""
    found: list[dict[str, str | float]] = []
    for file, data, largest in (("table3.csv", "HaN", "whole"), ("table5.csv", "liver", "256")):
        seconds = {}
        with (TABLES / file).open(newline="") as text:
            for row in csv.DictReader(text):
                seconds[row["model"], row["input"]] = float(row["seconds_mean"])
        for model in ("U-Net-32", "SEU-Net-32", "SEU-Net-128"):
            ratio = seconds[model, "64"] / seconds[model, largest]
            found.append({"data": data, "network": model, "largest": largest, "ratio": ratio})
    return found

"""Whole volumes against sliding windows of 64^3: seconds and memory; and the host memory of `predict`."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.inference import ways
from benchmarks.inference.host_memory import write_image
from benchmarks.shared.crew import crews
from benchmarks.shared.results import circumstances, median, options, write

ROUNDS = 5
HOST = (
    (256, 3.0, False, "elsewhere"),
    (400, 4.0, False, "elsewhere"),
    (400, 2.0, False, "elsewhere"),
    (400, 2.0, True, "elsewhere"),
    (400, 2.0, False, "cpu"),
)
"""Edge of the image in voxels of 1 mm, spacing of the network's grid in mm, whether its axes run otherwise than RAS,
where the logits are."""
AIM = 1.3


def measure(load: ways.Load, *, quick: bool) -> list[dict[str, Any]]:
    """All ways in turn, each in its process (in a quick run in one), round after round; the first round warms up."""
    edge, rounds = (32, 1) if quick else (64, ROUNDS)
    chosen = ways.windows(edge)
    with crews([(1, torch.get_num_threads())] * (1 if quick else len(chosen))) as made:
        processes = made * len(chosen) if quick else made
        seconds: dict[str, list[float]] = {name: [] for name in chosen}
        peaks: dict[str, float] = {}
        for (name, window), crew in zip(chosen.items(), processes):
            crew.prepare(name, ways.prepared, load, window)
        for turn in range(rounds + 1):
            for name, crew in zip(chosen, processes):
                took, told = crew.run(name)
                peaks[name] = told[0]["peak"]
                if turn:
                    seconds[name].append(took)
    whole = median(seconds["whole"])
    return [
        {
            "network": load.network.title,
            "size": load.size,
            "device": load.device,
            "way": name,
            "seconds": seconds[name],
            "ratio": median(seconds[name]) / whole,
            "peak": peaks[name],
        }
        for name in chosen
    ]


def host_memory(edge: int, spacing: float, turned: bool, network: str) -> dict[str, Any]:
    """In a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_image(Path(folder) / "image.nii.gz", edge, turned=turned)
        command = [sys.executable, "-m", "benchmarks.inference.host_memory", folder, str(edge), str(spacing), network]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"edge": edge, "spacing": spacing, "turned": turned, "network": network, **json.loads(done.stdout)}


def main() -> None:
    chosen = options(Path(__file__).parent, description=__doc__ or "")
    at = circumstances()
    timed = [row for load in ways.loads(quick=chosen.quick) for row in measure(load, quick=chosen.quick)]
    host = [host_memory(*each) for each in (((64, 3.0, True, "elsewhere"),) if chosen.quick else HOST)]
    own = [row for row in host if row["network"] == "elsewhere"]
    paper = ways.paper()
    summary = [
        *(
            f"{row['network']}, {row['device']}, {row['way']}: {row['ratio']:.2f} times the seconds of the whole volume"
            for row in timed
            if row["way"] != "whole"
        ),
        *(f"paper, {row['data']}, {row['network']}: {row['ratio']:.2f}" for row in paper),
        f"host memory of predict: at most {max(row['ratio'] for row in own):.2f} of image + labels + one slab of "
        f"logits beside the network's own logits (aim: {AIM})",
    ]
    write(
        chosen.out,
        "inference",
        title="Whole volumes against sliding windows",
        summary=summary,
        tables=[
            (
                f"One volume; medians of {len(timed[0]['seconds'])} interleaved rounds",
                ["network", "volume", "device", "way", "seconds", "times whole", "peak MiB above the weights"],
                [
                    [
                        row["network"],
                        "x".join(map(str, row["size"])),
                        row["device"],
                        row["way"],
                        f"{median(row['seconds']):.3f}",
                        f"{row['ratio']:.2f}",
                        f"{row['peak'] / 2**20:.0f}",
                    ]
                    for row in timed
                ],
            ),
            (
                "The paper's seconds for 64^3 patches over those of its largest input",
                ["data", "network", "largest input", "ratio"],
                [[row["data"], row["network"], row["largest"], f"{row['ratio']:.2f}"] for row in paper],
            ),
            (
                "Host memory of predict, 10 classes (MiB)",
                ["image", "network's grid", "logits", "image float32", "labels", "slab", "peak", "peak over their sum"],
                [
                    [
                        f"{row['edge']}^3 at 1 mm{', axes against RAS' * row['turned']}",
                        f"{row['spacing']:g} mm",
                        "on the CPU" if row["network"] == "cpu" else "no host memory",
                        *(f"{row[key] / 2**20:.0f}" for key in ("image", "labels", "slab", "peak")),
                        f"{row['ratio']:.2f}",
                    ]
                    for row in host
                ],
            ),
        ],
        data={"timed": timed, "paper": paper, "host": host},
        at=at,
    )


if __name__ == "__main__":
    main()

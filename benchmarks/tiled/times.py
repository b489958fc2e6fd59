"""Processor seconds of a training step on one thread: plain, with recompute in stages, and in tiles, in turn."""

import time
from pathlib import Path

from benchmarks.shared.ranks import run_ranks
from benchmarks.shared.results import circumstances, median, options, write
from benchmarks.tiled.ways import WAYS, Load, Way, step_of, ways_of
from lampseg.parallel.world import World

LOADS = tuple(Load(name, (96, 96, 96), tile=24) for name in ("unet", "dynunet", "segresnet", "residualencoderunet"))
QUICK = (Load("unet", (32, 16, 16), tile=4),)
ROUNDS = 3


def measure(world: World, load: Load, ways: dict[str, Way], rounds: int) -> dict[str, list[float]]:
    """Seconds of each way's steps; the first round warms up."""
    steps = {name: step_of(load, way, world=world) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, each in steps.items():
            begun = time.process_time()
            each.step()
            if turn:
                seconds[name].append(time.process_time() - begun)
    return seconds


def record(out: Path, *, quick: bool) -> None:
    """Writes tiled_times.json and .md."""
    at = circumstances()
    data, rows, dearer, source = [], [], [], ""
    for load in QUICK if quick else LOADS:
        ways = ways_of(load)
        (seconds,) = run_ranks(measure, 1, load, ways, 1 if quick else ROUNDS)
        times = {name: median(each) for name, each in seconds.items()}
        foreseen = {name: ways[name].plan.step_seconds / ways["plain"].plan.step_seconds for name in WAYS}
        source = ways["plain"].plan.hardware.split(" (")[0]  # without the path of a calibration
        dearer.append(times["tiles"] / times["plain"])
        data.append({"network": load.network, "size": load.size, "seconds": seconds, "foreseen": foreseen})
        cells = [f"{times[name]:.2f}" for name in WAYS]
        ratios = [f"{times[name] / times['plain']:.2f} ({foreseen[name]:.2f})" for name in WAYS[1:]]
        rows.append([load.network, "x".join(map(str, load.size)), *cells, *ratios])
    write(
        out,
        "tiled_times",
        title="The price of tiles",
        summary=[
            f"tiles take {min(dearer):.2f} to {max(dearer):.2f} times as long as a plain step",
            f"the planner's speeds: {source}",
        ],
        tables=[
            (
                "Processor seconds of a step, medians; in brackets what the planner foresees",
                ["network", "volume", *(f"{name}, s" for name in WAYS), *(f"{name}, of plain" for name in WAYS[1:])],
                rows,
            )
        ],
        data=data,
        at=at,
    )


if __name__ == "__main__":
    chosen = options(Path(__file__).parent, description=__doc__ or "")
    record(chosen.out, quick=chosen.quick)

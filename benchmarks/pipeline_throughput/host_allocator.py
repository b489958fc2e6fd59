"""What it saves on a CPU to keep freed memory: a training step of one process of one thread, with it and without.

python -m benchmarks.pipeline_throughput.host_allocator [--out DIR] [--quick]
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.pipeline_throughput import ways
from benchmarks.pipeline_throughput.run import LOAD, QUICK
from benchmarks.shared.crew import Crew
from benchmarks.shared.results import circumstances, median, options, write

SIDES = (40, 64)
ROUNDS = 5


def measure(load: ways.Load, rounds: int) -> dict[bool, list[float]]:
    """Seconds of each round's step by whether freed memory is kept; the two processes take turns."""
    crews = {kept: Crew(1, threads=1, kept=kept) for kept in (False, True)}
    seconds: dict[bool, list[float]] = {kept: [] for kept in crews}
    try:
        for crew in crews.values():
            crew.prepare("step", ways.accumulate, load)
        for turn in range(rounds + 1):
            for kept, crew in crews.items():
                took, _ = crew.run("step")
                if turn:
                    seconds[kept].append(took)
    finally:
        for crew in crews.values():
            crew.end()
    return seconds


def main() -> None:
    chosen = options(Path(__file__).parent, description=__doc__ or "")
    at = circumstances()
    rows, summary, data = [], [], []
    for side in (QUICK.shape[-1],) if chosen.quick else SIDES:
        shape = (2, 1, side, side, side)
        load = replace(QUICK if chosen.quick else LOAD, shape=shape, micro_batches=2)
        found = measure(load, 1 if chosen.quick else ROUNDS)
        given, kept = median(found[False]), median(found[True])
        title = "x".join(map(str, shape))
        rows.append([title, f"{given:.3f}", f"{kept:.3f}", f"{kept / given:.2f}"])
        summary.append(f"{title}: {kept / given:.2f} times the seconds where freed memory is kept")
        data.append({"shape": shape, "given_back": found[False], "kept": found[True]})
    columns = ["micro-batch", "seconds, given back", "seconds, kept", "ratio"]
    table: tuple[str, list[str], list[list[str]]] = (
        "U-Net of the throughput benchmark, two micro-batches",
        columns,
        rows,
    )
    result: dict[str, Any] = {"sizes": data}
    title = "Freed memory kept for the next step"
    write(chosen.out, "host_allocator", title=title, summary=summary, tables=[table], data=result, at=at)


if __name__ == "__main__":
    main()

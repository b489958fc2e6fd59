"""Tiles on one device: how much less memory a step and a prediction need, and what the step costs."""

from pathlib import Path

from benchmarks.shared.results import options
from benchmarks.tiled import memory, times


def main() -> None:
    chosen = options(Path(__file__).parent, description=__doc__ or "")
    memory.record(chosen.out, quick=chosen.quick)
    times.record(chosen.out, quick=chosen.quick)


if __name__ == "__main__":
    main()

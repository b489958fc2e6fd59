"""Sums up runs/phantom_study.sh: paired differences of Dice between inputs and between networks, with intervals.

    .venv/bin/python runs/phantom_study.py OUT

A pair is one test case by two rows of one seed, averaged over the seeds, so that a case counts once; the interval is
the bootstrap's over cases, p that of Wilcoxon's signed-rank test. Writes benchmarks/results/phantom_study.md.
"""

import argparse
import os
import platform
import time
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import torch

from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.statistics.paired import PairedTest, holm, paired_test
from lampseg.version import __version__

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
INPUTS = {"64": "16^3", "128": "32^3", "whole": "whole"}
"""The paper's name -> this study's input."""
FILTERS = {"32": 8, "64": 16}
NETWORKS = {"unet": "U-Net", "seunet": "SE-U-Net"}


def scores(out: Path, network: str, given: str) -> dict[str, float]:
    """Average Dice (%) of each test case, the mean over the seeds that are done."""
    found: dict[str, list[float]] = {}
    for folder in sorted(out.glob("seed-*/")):
        source = folder / network / given / "evaluation.json"
        for case in Evaluation.from_json(source.read_text(), source=str(source)).cases:
            assert case.average is not None
            found.setdefault(case.case, []).append(100 * case.average)
    return {case: fmean(values) for case, values in found.items()}


def label(network: str) -> str:
    name, filters = network.split("-")
    return f"{NETWORKS[name]}, {FILTERS[filters]} filters"


def said(test: PairedTest, p: float | None) -> list[str]:
    assert test.difference is not None
    low, high = (test.interval.low, test.interval.high) if test.interval is not None else (float("nan"),) * 2
    return [f"{test.difference:+.1f}", f"{low:+.1f} to {high:+.1f}", f"{p:.3g}", f"{test.wins} / {test.losses}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    networks = [f"{network}-{filters}" for network in NETWORKS for filters in FILTERS]
    dice = {(network, given): scores(out, network, given) for network in networks for given in INPUTS}
    comparisons: list[tuple[str, str, PairedTest]] = []
    for network in networks:
        for small, large in (*pairwise(INPUTS), ("64", "whole")):
            a, b = dice[network, small], dice[network, large]
            test = paired_test([a[case] for case in a], [b[case] for case in a])
            comparisons.append(("input", f"{label(network)}: {INPUTS[small]} to {INPUTS[large]}", test))
    for name, title in NETWORKS.items():
        for given, shown in INPUTS.items():
            a, b = dice[f"{name}-32", given], dice[f"{name}-64", given]
            test = paired_test([a[case] for case in a], [b[case] for case in a])
            comparisons.append(("network", f"{title}, {shown}: 8 to 16 filters", test))
    adjusted = holm([test.p for _, _, test in comparisons])
    lines = [
        "# Does Dice rise with the input and with the network? On the phantom",
        "",
        f"`runs/phantom_study.sh`: 24 training and 12 test cases, {len(list(out.glob('seed-*/')))} seeds, each network "
        "trained through all three inputs (300, 150 and 50 steps), the best model of each stage by a validation split. "
        f"lampseg {__version__}, torch {torch.__version__}, {os.cpu_count()} cores, {platform.machine()}, "
        f"{time.strftime('%Y-%m-%d')}.",
        "",
        "Each input continues the training of the one before, as in the paper's curriculum: a larger input has also "
        "seen more steps. Its share is told apart by `runs/curriculum_against_patches.py`, at equal numbers of steps.",
        "",
        "| network | " + " | ".join(f"{shown}: Dice" for shown in INPUTS.values()) + " |",
        "|---|" + "---|" * len(INPUTS),
    ]
    for network in networks:
        cells = [f"{fmean(dice[network, g].values()):.1f} %" for g in INPUTS]
        lines.append(f"| {label(network)} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "Paired differences of average Dice in points, test case by test case, averaged over the seeds; 95 % bootstrap "
        f"interval over cases; Wilcoxon's p after Holm's correction for {len(comparisons)} comparisons.",
        "",
        "| from, to | difference | 95 % interval | p | cases better / worse |",
        "|---|---|---|---|---|",
        *(f"| {title} | " + " | ".join(said(t, p)) + " |" for (_, title, t), p in zip(comparisons, adjusted)),
        "",
        *(answer(kind, comparisons, adjusted) for kind in ("input", "network")),
    ]
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "phantom_study.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def answer(kind: str, comparisons: list[tuple[str, str, PairedTest]], adjusted: tuple[float | None, ...]) -> str:
    """The answer, whichever it is."""
    mine = [(test, p) for (which, _, test), p in zip(comparisons, adjusted) if which == kind]
    up = sum((test.difference or 0) > 0 and p is not None and p < 0.05 for test, p in mine)
    down = sum((test.difference or 0) < 0 and p is not None and p < 0.05 for test, p in mine)
    rest = len(mine) - up - down
    return (
        f"- A larger {kind}: Dice rose significantly in {up} of {len(mine)} comparisons and fell in {down}"
        f"{f'; the other {rest} tell no difference' if rest else ''}."
    )


if __name__ == "__main__":
    main()

"""Predicted against measured: peak bytes of tensors on every rank, and the ratio of step times between plans."""

import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.plan_accuracy.cases import CASES, QUICK, QUICK_TIMED, TIMED, Case
from benchmarks.plan_accuracy.memory import measure_all, planned, predicted
from benchmarks.plan_accuracy.times import measure_seconds, ratio_errors
from benchmarks.shared.networks import SMALL
from benchmarks.shared.ranks import run_ranks
from benchmarks.shared.results import circumstances, median, options, percent, write
from lampseg.commands.calibrate import calibrate

ROUNDS = 5


def memory(cases: tuple[Case, ...], *, kind: str) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """The entries and the table's rows; on CUDA those that one process can run."""
    cases = tuple(case for case in cases if kind == "cpu" or case.processes <= torch.cuda.device_count())
    made = {case: predicted(case, kind=kind) for case in cases}
    data, rows = [], []
    for size in sorted({case.processes for case in cases}):
        work = [(case, made[case][0]) for case in cases if case.processes == size]
        peaks = run_ranks(measure_all, size, work, device=kind)[0]
        for (case, plan), measured in zip(work, peaks, strict=True):
            of = made[case][1] * case.replicas
            errors = [ours / real - 1 for ours, real in zip(of, measured, strict=True)]
            data.append(
                {"case": case.way, "network": case.network, "cuts": plan.cuts, "predicted": of, "measured": measured,
                 "errors": errors}
            )  # fmt: skip
            worst = max(errors, key=abs)
            peak = max(measured) / 2**20
            rows.append([SMALL[case.network].title, case.way, f"{peak:.1f}", percent(worst)])
            print(*rows[-1], flush=True)
    return data, rows


def times(cases: tuple[Case, ...], *, out: Path, quick: bool) -> tuple[dict[str, Any], list[list[str]]]:
    """Step times after a calibration, on two processes of one thread."""
    path = "cpu"  # a stated preset, in the quick version
    if not quick:
        path = str(out / "hardware.json")
        os.environ["LAMPSEG_HARDWARE"] = path
        Path(path).unlink(missing_ok=True)  # of an earlier run, perhaps on another machine
        calibrate(devices="2", out=Path(path))
    plans = [planned(case, path=path)[1] for case in cases]
    measured = run_ranks(measure_seconds, 2, list(zip(cases, plans, strict=True)), 2 if quick else ROUNDS)[0]
    ours = [plan.step_seconds for plan in plans]
    errors = ratio_errors(ours, measured)
    rows = [
        [SMALL[case.network].title, case.way, f"{mine:.3f}", f"{median(took):.3f}", f"{mine / median(took):.2f}"]
        for case, mine, took in zip(cases, ours, measured, strict=True)
    ]
    for row in rows:
        print(*row, flush=True)
    within = [e for (a, b), e in errors.items() if cases[a].network == cases[b].network]
    data = {
        "plans": [
            {"network": case.network, "way": case.way, "predicted": mine, "measured": took}
            for case, mine, took in zip(cases, ours, measured, strict=True)
        ],
        "pairs": len(errors),
        "median": median(list(errors.values())),
        "worst": max(errors.values()),
        "median_same_network": median(within),
        "worst_same_network": max(within),
        "pairs_same_network": len(within),
    }
    return data, rows


def main() -> None:
    chosen = options(Path(__file__).parent, description=__doc__ or "")
    at = circumstances()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    of_memory, memory_rows = memory(QUICK if chosen.quick else CASES, kind=kind)
    every = [abs(error) for item in of_memory for error in item["errors"]]
    worst = [max(map(abs, item["errors"])) for item in of_memory]
    summary = [
        f"memory ({kind}): {len(of_memory)} combinations, {len(every)} ranks: median error {percent(median(every))}, "
        f"worst {percent(max(every))} (aims: 3 %, 10 %); of each combination's worst rank the median is "
        f"{percent(median(worst))}"
    ]
    tables = [("Peak bytes of tensors", ["network", "way", "MiB of the fullest rank", "worst error"], memory_rows)]
    data: dict[str, Any] = {"memory": of_memory}
    if kind == "cpu":
        of_time, time_rows = times(QUICK_TIMED if chosen.quick else TIMED, out=chosen.out, quick=chosen.quick)
        data["time"] = of_time
        summary += [
            f"time: ratio of step times, {of_time['pairs']} pairs of {len(time_rows)} plans: median error "
            f"{percent(of_time['median'])}, worst {percent(of_time['worst'])} (aims: 10 %, 25 %)",
            f"time, pairs of one network ({of_time['pairs_same_network']}): median error "
            f"{percent(of_time['median_same_network'])}, worst {percent(of_time['worst_same_network'])}",
        ]
        columns = ["network", "way", "predicted, s", "measured, s", "ratio"]
        tables.append(("Seconds of a step", columns, time_rows))
    write(
        chosen.out,
        "plan_accuracy",
        title="Plans against what happens",
        summary=summary,
        tables=tables,
        data=data,
        at=at,
    )


if __name__ == "__main__":
    main()

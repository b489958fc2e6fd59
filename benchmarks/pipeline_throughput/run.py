"""One training step on two cores: two processes by every schedule, against one process and other libraries."""

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.pipeline_throughput import ways
from benchmarks.shared.crew import Crew, crews
from benchmarks.shared.results import circumstances, median, options, write
from lampseg.commands.calibrate import calibrate
from lampseg.hardware.device import hardware_for
from lampseg.parallel.world import World
from lampseg.partition.costed import CostedNetwork, cost_network
from lampseg.partition.forecast import plan_of
from lampseg.partition.plan import Plan
from lampseg.partition.planner import cut_for
from lampseg.partition.schedule import SCHEDULES, Schedule

COUNTS = (1, 2, 4, 8)
ROUNDS = 5
LOAD = ways.Load(filters=8, shape=(2, 1, 40, 40, 40), micro_batches=0)
"""Two samples in a micro-batch: with one, PyTorch would take its slow convolution for the smaller levels."""
QUICK = ways.Load(filters=4, shape=(2, 1, 8, 8, 8), micro_batches=0)


def alone(load: ways.Load, *, world: World) -> ways.Step:
    """What two processes reach that have nothing to tell each other: each runs all micro-batches, at the same time."""
    return ways.accumulate(load)


def plan(model: CostedNetwork, schedule: Schedule, *, micro_batches: int, replicas: int = 1) -> Plan:
    devices = 2 // replicas
    stages = 2 * devices if schedule in ("v", "interleaved") else devices
    choices = cut_for(
        model,
        devices=devices,
        stages=stages,
        schedule=schedule,
        micro_batches=micro_batches,
        replicas=replicas,
        recompute=("none",) * stages,
    )
    assert choices is not None
    return plan_of(model, choices)


def bound(schedule: str, micro_batches: int) -> float:
    """The largest possible share of the time in which the devices compute, with equal stages and no messages."""
    parts = 2 if schedule in ("interleaved", "v") else 1
    return parts * micro_batches / (parts * micro_batches + 1)


def prepare(
    load: ways.Load, model: CostedNetwork, cut: int, balance: list[int] | None, pair: Crew, one: Crew
) -> dict[str, Crew]:
    """Builds every way to run one step; which crew runs which."""
    who: dict[str, Crew] = {}

    def add(crew: Crew, name: str, make: Any, *arguments: Any) -> None:
        crew.prepare(name, make, load, *arguments)
        who[name] = crew

    count = load.micro_batches
    add(one, "one process, accumulates", ways.accumulate)
    add(one, "one process, one batch", ways.one_batch)
    add(pair, "two processes apart", alone)
    for schedule in SCHEDULES:
        add(pair, f"lampseg {schedule}", ways.ours, plan(model, schedule, micro_batches=count))
    if count > 1:
        add(pair, "lampseg 2 replicas", ways.ours, plan(model, "1f1b", micro_batches=count, replicas=2))
    add(pair, "torch gpipe", ways.torch_pipelining, cut, "gpipe")
    if count > 1:  # it refuses fewer micro-batches than stages
        add(pair, "torch 1f1b", ways.torch_pipelining, cut, "1f1b")
    if balance is not None:
        add(one, "torchgpipe", ways.gpipe, balance)
    return who


def measure(who: dict[str, Crew], rounds: int) -> dict[str, dict[str, Any]]:
    """All ways in turn, round after round; the first round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in who}
    told: dict[str, list[Any]] = {name: [] for name in who}
    for turn in range(rounds + 1):
        for name, crew in who.items():
            took, says = crew.run(name)
            if turn:
                seconds[name].append(took)
                told[name].append(says)
    return {name: {"seconds": seconds[name], "told": told[name]} for name in who}


def main() -> None:
    chosen = options(Path(__file__).parent, description=__doc__ or "")
    at = circumstances()
    load = QUICK if chosen.quick else LOAD
    path = None
    if not chosen.quick:
        path = str(calibrate(devices="2", out=chosen.out / "hardware.json"))
    hardware = hardware_for(kind="cpu", name=path or "cpu", processes=2)
    model = cost_network(load.network(), shape=load.shape, hardware=hardware, name="U-Net")
    found: dict[int, dict[str, dict[str, Any]]] = {}
    with crews([(2, 1), (1, 2)]) as (pair, one):
        balance = None
        if importlib.util.find_spec("torchgpipe") is not None:
            (balance,) = one.call(ways.balanced, load)
        cut = balance[0] if balance else 3
        for count in (1, 2) if chosen.quick else COUNTS:
            who = prepare(replace(load, micro_batches=count), model, cut, balance, pair, one)
            found[count] = measure(who, 1 if chosen.quick else ROUNDS)
            pair.forget()
            one.forget()
            print(
                f"M = {count}: " + ", ".join(f"{k} {median(v['seconds']):.3f}" for k, v in found[count].items()),
                flush=True,
            )
    report(found, out=chosen.out, at=at, cut=cut, load=load)


def report(
    found: dict[int, dict[str, dict[str, Any]]], *, out: Path, at: dict[str, Any], cut: int, load: ways.Load
) -> None:
    rows, data, worst = [], [], []
    for count, ways_found in found.items():
        times = {name: median(item["seconds"]) for name, item in ways_found.items()}
        best = min(times["one process, accumulates"], times["one process, one batch"])
        for name, item in ways_found.items():
            ideal = times["two processes apart"] / 2
            efficiency = ideal / times[name]
            schedule = name.split()[-1]
            limit = bound(schedule, count) if schedule in (*SCHEDULES,) else None
            entry = {
                "micro_batches": count,
                "way": name,
                "median": times[name],
                "efficiency": efficiency,
                "bound": limit,
            }
            data.append({**entry, **item})
            if name.startswith("lampseg") and limit:
                worst.append((count, name, efficiency / limit))
            rows.append(
                [
                    str(count),
                    name,
                    f"{times[name]:.3f}",
                    f"{best / times[name]:.2f}",
                    f"{efficiency:.2f}",
                    f"{limit:.2f}" if limit else "",
                    f"{efficiency / limit:.2f}" if limit else "",
                ]
            )
    most = max(found)
    times = {name: median(item["seconds"]) for name, item in found[most].items()}
    summary = [f"M = {count}, {name}: {ratio:.2f} of its bound" for count, name, ratio in worst if count == most]
    for schedule in ("gpipe", "1f1b"):
        ratio = times[f"torch {schedule}"] / times[f"lampseg {schedule}"]
        summary.append(f"M = {most}, {schedule}: {ratio:.2f} times as fast as torch.distributed.pipelining cut by hand")
    best = min(times["one process, accumulates"], times["one process, one batch"])
    fastest = min((name for name in times if name.startswith("lampseg")), key=times.__getitem__)
    summary.append(f"M = {most}: {fastest} is {best / times[fastest]:.2f} times as fast as one process of two threads")
    write(
        out,
        "pipeline_throughput",
        title="Throughput of two processes on two cores",
        summary=summary,
        tables=[
            (
                f"U-Net of {load.filters} filters, micro-batches of {'x'.join(map(str, load.shape))}; cut by hand "
                f"after block {cut}; medians of {len(next(iter(found[most].values()))['seconds'])} interleaved steps",
                ["M", "way", "seconds", "speed against one process", "efficiency", "bound", "of the bound"],
                rows,
            )
        ],
        data=data,
        at=at,
    )


if __name__ == "__main__":
    main()

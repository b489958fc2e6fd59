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
from lampseg.partition.schedule import SCHEDULES, Pace, Schedule, timetable

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


def bound(micro_batches: int) -> float:
    """The share of the time in which two devices compute, with one of two equal stages on each and no messages."""
    return micro_batches / (micro_batches + 1)


def allowed(plan: Plan) -> float:
    """The same for the stages that a plan has, which no cut between operations makes equal; by the planner's costs."""
    stages = plan.stages
    pace = Pace(tuple(s.forward_seconds for s in stages), tuple(s.backward_seconds for s in stages))
    table = timetable(plan.schedule, devices=2, micro_batches=plan.micro_batches, pace=pace)
    return 1.0 - table.bubble


def prepare(
    load: ways.Load, plans: dict[str, Plan], cut: int, balance: list[int] | None, pair: Crew, one: Crew
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
    for name, made in plans.items():
        add(pair, name, ways.ours, made)
    add(pair, "torch gpipe", ways.torch_pipelining, cut, "gpipe")
    if count > 1:  # it refuses fewer micro-batches than stages
        add(pair, "torch 1f1b", ways.torch_pipelining, cut, "1f1b")
    if balance is not None:
        add(one, "torchgpipe", ways.gpipe, balance)
    return who


def plans_for(model: CostedNetwork, micro_batches: int) -> dict[str, Plan]:
    """One for each way that is ours."""
    made = {f"lampseg {schedule}": plan(model, schedule, micro_batches=micro_batches) for schedule in SCHEDULES}
    if micro_batches > 1:
        made["lampseg 2 replicas"] = plan(model, "1f1b", micro_batches=micro_batches, replicas=2)
    return made


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
        (chosen.out / "hardware.json").unlink(missing_ok=True)  # of an earlier run, perhaps on another machine
        path = str(calibrate(devices="2", out=chosen.out / "hardware.json"))
    hardware = hardware_for(kind="cpu", name=path or "cpu", processes=2)
    model = cost_network(load.network(), shape=load.shape, hardware=hardware, name="U-Net")
    found: dict[int, dict[str, dict[str, Any]]] = {}
    made: dict[int, dict[str, Plan]] = {}
    with crews([(2, 1), (1, 2)]) as (pair, one):
        balance = None
        if importlib.util.find_spec("torchgpipe") is not None:
            (balance,) = one.call(ways.balanced, load)
        cut = balance[0] if balance else 3
        for count in (1, 2) if chosen.quick else COUNTS:
            made[count] = plans_for(model, count)
            who = prepare(replace(load, micro_batches=count), made[count], cut, balance, pair, one)
            found[count] = measure(who, 1 if chosen.quick else ROUNDS)
            pair.forget()
            one.forget()
            print(
                f"M = {count}: " + ", ".join(f"{k} {median(v['seconds']):.3f}" for k, v in found[count].items()),
                flush=True,
            )
    report(found, made, out=chosen.out, at=at, cut=cut, load=load)


def report(
    found: dict[int, dict[str, dict[str, Any]]],
    plans: dict[int, dict[str, Plan]],
    *,
    out: Path,
    at: dict[str, Any],
    cut: int,
    load: ways.Load,
) -> None:
    rows, data = [], []
    for count, ways_found in found.items():
        times = {name: median(item["seconds"]) for name, item in ways_found.items()}
        best = min(times["one process, accumulates"], times["one process, one batch"])
        for name, item in ways_found.items():
            ideal = times["two processes apart"] / 2
            efficiency = ideal / times[name]
            pipeline = name.split()[-1] in SCHEDULES
            mine = plans[count].get(name) if pipeline else None
            entry = {
                "micro_batches": count,
                "way": name,
                "median": times[name],
                "efficiency": efficiency,
                "bound": bound(count) if pipeline else None,
                "allowed": allowed(mine) if mine else None,
                "predicted": mine.step_seconds if mine else None,
            }
            data.append({**entry, **item})
            rows.append(
                [
                    str(count),
                    name,
                    f"{times[name]:.3f}",
                    f"{best / times[name]:.2f}",
                    f"{efficiency:.2f}",
                    f"{efficiency / bound(count):.2f}" if pipeline else "",
                    f"{allowed(mine):.2f}" if mine else "",
                    f"{efficiency / allowed(mine):.2f}" if mine else "",
                ]
            )
    most = max(found)
    times = {name: median(item["seconds"]) for name, item in found[most].items()}
    ideal = times["two processes apart"] / 2
    pipelines = {f"lampseg {schedule}": plans[most][f"lampseg {schedule}"] for schedule in SCHEDULES}
    planned = min(pipelines, key=lambda name: pipelines[name].step_seconds)
    summary = [
        f"M = {most}, {name}{', which the planner takes' if name == planned else ''}: "
        f"{ideal / times[name] / bound(most):.2f} of M / (M + 1), {ideal / times[name] / allowed(mine):.2f} of what "
        "its stages allow"
        for name, mine in pipelines.items()
    ]
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
                [
                    "M",
                    "way",
                    "seconds",
                    "speed against one process",
                    "efficiency",
                    "of M / (M + 1)",
                    "its stages allow",
                    "of what they allow",
                ],
                rows,
            )
        ],
        data=data,
        at=at,
    )


if __name__ == "__main__":
    main()

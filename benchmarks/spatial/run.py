"""Slabs against the whole: memory and messages of each rank, and the time of a step on two cores."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.shared.crew import Crew, crews
from benchmarks.shared.results import circumstances, median, options, write
from benchmarks.spatial import steps
from lampseg.hardware.device import hardware_for
from lampseg.parallel.spatial.forecast import slab_plan
from lampseg.parallel.spatial.grids import choices_for
from lampseg.partition.costed import CostedNetwork, cost_network
from lampseg.partition.forecast import plan_of
from lampseg.partition.plan import Plan
from lampseg.partition.planner import cut_for

ROUNDS = 7
LOAD = steps.Load("U-Net", filters=24, size=(96, 96, 96))
QUICK = steps.Load("U-Net", filters=4, size=(16, 16, 16))
SIZES = ((64, 64, 64), (352, 64, 64))
GRIDS = ((2, 1, 1), (4, 1, 1), (2, 2, 1))
TOLERATED = {2: 1.05, 4: 1.10}
"""Saved bytes of the fullest rank, times the ranks, over those of one device."""


def costed(load: steps.Load) -> CostedNetwork:
    return cost_network(
        load.network(), shape=load.shape, hardware=hardware_for(kind="cpu", name="cpu", processes=2), name=load.name
    )


def memory(names: tuple[str, ...], sizes: tuple[tuple[int, ...], ...]) -> tuple[list[dict[str, Any]], list[list[str]]]:
    """Saved activation bytes, counted on fake tensors."""
    data, rows = [], []
    for name in names:
        for size in sizes:
            model = costed(steps.Load(name, filters=16, size=size))
            single = slabs_of(model, (1, 1, 1)).stages[0].activation_bytes
            for grid in GRIDS:
                plan = slabs_of(model, grid)
                ranks = plan.choices.sharing
                ratio = plan.stages[0].activation_bytes * ranks / single
                data.append({"network": name, "size": size, "grid": grid, "bytes": plan.stages[0].activation_bytes})
                data[-1] |= {"single": single, "ratio": ratio}
                texts = [name, "x".join(map(str, size)), "x".join(map(str, grid))]
                rows.append([*texts, f"{plan.stages[0].activation_bytes / 2**20:.1f}", f"{ratio:.3f}"])
    return data, rows


def slabs_of(model: CostedNetwork, grid: tuple[int, ...]) -> Plan:
    choices = choices_for(model, grid, micro_batches=1, replicas=1)
    return slab_plan(model, choices, stride=steps.STRIDE)


def pipeline_of(model: CostedNetwork) -> Plan:
    choices = cut_for(model, devices=2, stages=2, schedule="1f1b", micro_batches=1, recompute=("none", "none"))
    assert choices is not None
    return plan_of(model, choices)


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
    names = ("U-Net",) if chosen.quick else tuple(steps.NETWORKS)
    saved, memory_rows = memory(names, ((32, 32, 32),) if chosen.quick else SIZES)
    worst = {n: max(item["ratio"] for item in saved if _ranks(item["grid"]) == n) for n in TOLERATED}
    model = costed(load)
    plan = slabs_of(model, (2, 1, 1))
    with crews([(2, 1), (1, 2)]) as (pair, one):
        who = {"one process, two threads": one, "slabs": pair, "pipeline": pair}
        one.prepare("one process, two threads", steps.alone, load)
        pair.prepare("slabs", steps.ours, load, plan)
        pair.prepare("pipeline", steps.ours, load, pipeline_of(model))
        found = measure(who, 1 if chosen.quick else ROUNDS)
    times = {name: median(item["seconds"]) for name, item in found.items()}
    one_process = times["one process, two threads"]
    sent = found["slabs"]["told"][-1]
    counted = [[rank[key] for key in steps.COUNTED] for rank in sent]
    foreseen = steps.foreseen(model, (2, 1, 1))
    assert counted == foreseen, f"sent {counted}, foreseen {foreseen}"
    summary = [
        *(
            f"saved activations of the fullest rank, K = {n}: {ratio:.3f} of 1/K at most (aim: {TOLERATED[n]})"
            for n, ratio in worst.items()
        ),
        f"halo and collective bytes and messages of each rank: as foreseen ({counted[0]})",
        f"{one_process / times['slabs']:.2f} times as fast as one process of two threads (aim: 0.95)",
        f"{times['pipeline'] / times['slabs']:.2f} times as fast as our pipeline with one micro-batch (aim: 1.8)",
    ]
    rows = [
        [name, f"{seconds:.3f}", f"{times['one process, two threads'] / seconds:.2f}"]
        for name, seconds in times.items()
    ]
    write(
        chosen.out,
        "spatial",
        title="Slabs on two cores",
        summary=summary,
        tables=[
            (
                f"A step of {load.name} with {load.filters} filters on 1x1x{'x'.join(map(str, load.size))}; medians of "
                f"{len(found['slabs']['seconds'])} interleaved steps",
                ["way", "seconds", "speed against one process"],
                rows,
            ),
            (
                "Saved activations of the fullest rank, 16 filters (counted on fake tensors)",
                ["network", "volume", "slabs", "MiB", "times ranks, over one device"],
                memory_rows,
            ),
            (
                "Sent in one step by each of two ranks",
                ["rank", *steps.COUNTED],
                [[str(rank), *map(str, values)] for rank, values in enumerate(counted)],
            ),
        ],
        data={"times": found, "saved": saved, "sent": counted},
        at=at,
    )


def _ranks(grid: tuple[int, ...]) -> int:
    return int(torch.Size(grid).numel())


if __name__ == "__main__":
    main()

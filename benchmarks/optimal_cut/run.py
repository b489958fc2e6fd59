"""The planner's cut against brute force over all cuts, and torchgpipe's heuristic on the same times."""

import importlib.util
from pathlib import Path
from typing import Any

from benchmarks.optimal_cut.brute import Brute
from benchmarks.shared.networks import SMALL
from benchmarks.shared.results import circumstances, median, options, write
from lampseg.partition.cost import IntervalCosts, Regime
from lampseg.partition.costed import cost_network
from lampseg.partition.schedule import warm_up
from lampseg.partition.solver import solve

SHAPES = {"swinunetr": (1, 1, 64, 64, 64)}
SHAPE = (1, 1, 32, 32, 32)
SLACK = 0.004
"""The solver's own."""
TIGHT = 0.85
"""Of the memory that the fullest device needs without a limit."""


def compare(costs: IntervalCosts, *, stages: int, micro_batches: int, tight: bool) -> dict[str, Any] | None:
    """How far the solver is from the best of all cuts; 1.0 is equal. None: no cut fits the memory."""
    held = tuple(warm_up("1f1b", stage=k, stages=stages, micro_batches=micro_batches) for k in range(stages))
    regime = Regime(micro_batches, held)
    memory = None
    if tight:
        free = solve(costs, stages=stages, regime=regime)
        assert free is not None
        peak = Brute(costs, stages=stages, regime=regime).value(free.positions).peak
        memory = [TIGHT * peak] * stages
    brute = Brute(costs, stages=stages, regime=regime, memory=memory)
    exact = solve(costs, stages=stages, regime=regime, memory=memory, slack=0.0)
    chosen = solve(costs, stages=stages, regime=regime, memory=memory)
    best = brute.best(SLACK)
    if exact is None or chosen is None:
        assert best.seconds == float("inf"), "the solver found no cut where there is one"
        return None
    fast, found = brute.value(exact.positions), brute.value(chosen.positions)
    result: dict[str, Any] = {
        "stages": stages,
        "micro_batches": micro_batches,
        "tight": tight,
        "cuts": brute.number(),
        # With one micro-batch the solver gives time away for memory whatever the slack.
        "seconds": fast.seconds / best.seconds if micro_batches > 1 else None,
        "seconds_with_slack": found.seconds / best.seconds,
    }
    if best.too_long:
        result |= {"peak": None, "received": None}
    else:
        result |= {
            "peak": max(1.0, found.peak / (best.peak * (1 + SLACK))),
            "received": found.received / best.received if best.received else 1.0,
        }
    return result


def heuristic(costs: IntervalCosts, *, stages: int) -> float | None:
    """torchgpipe's slowest stage against the least possible, on the same times; None if it is not installed."""
    if importlib.util.find_spec("torchgpipe") is None:
        return None
    from torchgpipe.balance import blockpartition

    table = costs.seconds(again=False)
    times = [float(table[i, i + 1]) for i in range(costs.count)]
    blocks = blockpartition.solve(times, partitions=stages)
    regime = Regime(1, (1,) * stages)
    return max(map(sum, blocks)) / Brute(costs, stages=stages, regime=regime).slowest()


def main() -> None:
    chosen = options(Path(__file__).parent, description=__doc__ or "")
    at = circumstances()
    names = ["basicunet"] if chosen.quick else list(SMALL)
    most = 3 if chosen.quick else 4
    data, rows = [], []
    for name in names:
        shape = SHAPES.get(name, SHAPE)
        network = SMALL[name].build(shape[2:], meta=True)
        costs = cost_network(network, shape=shape, name=name).costs
        found = [
            {"network": name, "positions": costs.count, **result}
            for stages in range(2, most + 1)
            for micro_batches in ((4,) if chosen.quick else (1, 4, 8))
            for tight in (False, True)
            if (result := compare(costs, stages=stages, micro_batches=micro_batches, tight=tight)) is not None
        ]
        others = {stages: heuristic(costs, stages=stages) for stages in range(2, most + 1)}
        data.append({"network": name, "positions": costs.count, "solver": found, "torchgpipe": others})
        worst = {key: max((r[key] for r in found if r[key] is not None), default=1.0) for key in _KEYS}
        known = [value for value in others.values() if value is not None]
        rows.append(
            [
                SMALL[name].title,
                str(costs.count),
                f"{max(r['cuts'] for r in found):,}",
                *(f"{worst[key]:.6f}" for key in _KEYS),
                " / ".join(f"{value:.3f}" for value in known) or "not installed",
            ]
        )
        print(rows[-1], flush=True)
    every = [result for item in data for result in item["solver"]]
    worst = max(result[key] for result in every for key in _KEYS if result[key] is not None)
    theirs = [value for item in data for value in item["torchgpipe"].values() if value is not None]
    summary = [f"{len(every)} problems, {len(names)} networks: at worst {worst:.6f} of brute force (aim: 1.00)"]
    if theirs:
        summary.append(
            f"torchgpipe's blockpartition on the same times: its slowest stage takes {median(theirs):.3f} of the least "
            f"possible in the median, {max(theirs):.3f} at worst"
        )
    write(
        chosen.out,
        "optimal_cut",
        title="The cut is optimal",
        summary=summary,
        tables=[
            (
                f"Worst ratio to brute force over K = 2 to {most}, M = 1, 4, 8, with and without a tight memory",
                ["network", "positions", "cuts (at most)", "time", "memory", "messages", "torchgpipe, by K"],
                rows,
            )
        ],
        data=data,
        at=at,
    )


_KEYS = ("seconds", "peak", "received")

if __name__ == "__main__":
    main()

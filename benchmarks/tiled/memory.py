"""Peak bytes of tensors: counted in real steps and predictions, and as the planner predicts them."""

from pathlib import Path
from typing import Any

from benchmarks.plan_accuracy.memory import measure_all
from benchmarks.shared.ranks import run_ranks
from benchmarks.shared.results import circumstances, median, options, percent, write
from benchmarks.tiled.ways import NETWORKS, WAYS, Load, inference, ways_of

LOADS = tuple(Load(name, (64, 64, 64), tile=8) for name in NETWORKS)
QUICK = (Load("unet", (32, 16, 16), tile=4),)
MIB = 2**20
TRAINING = (
    "network",
    "kept, of plain",
    *(f"{name}, MiB" for name in WAYS),
    "peak, of plain",
    "FLOPs, of plain",
    "error of the prediction",
)


def record(out: Path, *, quick: bool) -> None:
    """Writes tiled_memory.json and .md."""
    at = circumstances()
    loads = QUICK if quick else LOADS
    made = {load: ways_of(load) for load in loads}
    work = [(load.case, made[load][name].plan) for load in loads for name in WAYS]
    counted = iter(peak for (peak,) in run_ranks(measure_all, 1, work)[0])
    training, predicting, data = list[list[str]](), list[list[str]](), list[dict[str, Any]]()
    for load in loads:
        ways = made[load]
        peaks = {name: next(counted) for name in WAYS}
        kept = {name: ways[name].plan.stages[0].activation_bytes for name in ("plain", "tiles")}
        errors = {name: ways[name].predicted / peaks[name] - 1 for name in WAYS}
        forward = {"plain": inference(load, tiled=False), "tiles": inference(load, tiled=True)}
        flops = {name: sum(stage.flops for stage in ways[name].plan.stages) for name in ("plain", "tiles")}
        item = {"network": load.network, "size": load.size, "tile": load.tile, "kept": kept, "peaks": peaks}
        item |= {"predicted": {n: ways[n].predicted for n in WAYS}, "errors": errors, "inference": forward}
        data.append({**item, "flops": flops})
        training.append(
            [
                load.network,
                f"{kept['tiles'] / kept['plain']:.2f}",
                *(f"{peaks[name] / MIB:.1f}" for name in WAYS),
                f"{peaks['tiles'] / peaks['plain']:.2f}",
                f"{flops['tiles'] / flops['plain']:.2f}",
                percent(errors["tiles"]),
            ]
        )
        predicting.append(
            [
                load.network,
                *(f"{forward[name] / MIB:.1f}" for name in forward),
                f"{forward['tiles'] / forward['plain']:.2f}",
            ]
        )
    ratios = {
        "kept": [item["kept"]["tiles"] / item["kept"]["plain"] for item in data],
        "peak": [item["peaks"]["tiles"] / item["peaks"]["plain"] for item in data],
        "inference": [item["inference"]["tiles"] / item["inference"]["plain"] for item in data],
    }
    size = "x".join(map(str, loads[0].size))
    worst = max(abs(item["errors"]["tiles"]) for item in data)
    write(
        out,
        "tiled_memory",
        title="Memory of tiles on one device",
        summary=[
            *(
                f"{name}: {min(each):.2f} to {max(each):.2f} of plain, median {median(each):.2f}"
                for name, each in ratios.items()
            ),
            f"predicted peak of tiles: worst error {percent(worst)} (aim: 3 %)",
        ],
        tables=[
            (f"A training step on {size}, tiles of {loads[0].tile} planes", TRAINING, training),
            ("A prediction, beside parameters", ("network", "plain, MiB", "tiles, MiB", "of plain"), predicting),
        ],
        data=data,
        at=at,
    )


if __name__ == "__main__":
    chosen = options(Path(__file__).parent, description=__doc__ or "")
    record(chosen.out, quick=chosen.quick)

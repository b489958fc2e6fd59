"""What the paper's cases need with our plans, next to the devices that the paper names for them."""

import csv
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.shared.results import circumstances, options, write
from lampseg.config import LossConfig, NetworkConfig
from lampseg.hardware.device import hardware_for
from lampseg.networks import build_network, on_meta
from lampseg.parallel.rehearsal import rehearse
from lampseg.parallel.spatial.grids import slab_plans
from lampseg.partition.plan import Plan
from lampseg.partition.problem import Problem
from lampseg.partition.questions import fewest_devices
from lampseg.partition.search import Found
from lampseg.training.planned_loss import planned_loss

HERE = Path(__file__).parent
GIB = 2**30
BATCHES = {"64": 16, "128": 4, "192": 1, "256": 1, "whole": 1}
"""Section 3 of the paper: 16 for 64^3, 4 for 128^3, one for the largest input."""
WHOLE = {"table3": (352, 256, 288), "table5": (512, 512, 704)}
CLASSES = {"table3": 10, "table5": 3}
LARGEST = {"table3": "whole", "table5": "192"}
"""The largest input that the paper trains on."""
WAYS: dict[str, dict[str, Any]] = {
    "float32": {"precision": "float32", "recompute": "none"},
    "float32, recompute": {"precision": "float32", "recompute": None},
    "bfloat16": {"precision": "bfloat16", "recompute": "none"},
    "bfloat16, recompute": {"precision": "bfloat16", "recompute": None},
    "float32, slabs": {"precision": "float32", "recompute": "none", "slabs": True},
}
STRIDE = (32, 32, 32)
"""The networks' total down-sampling."""


@dataclass(frozen=True)
class Case:
    """One model of one dataset that the paper names devices for."""

    table: str
    model: str
    devices: int
    """The paper's, of `memory` bytes each."""
    memory: int

    def network(self) -> NetworkConfig:
        name, filters = self.model.rsplit("-", 1)
        return NetworkConfig(name={"U-Net": "unet", "SEU-Net": "seunet"}[name], filters=int(filters))


def cases() -> list[Case]:
    """The rows of Tables 3 and 5 that name devices."""
    found = []
    for path in sorted((HERE / "data").glob("table*.csv")):
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                match = re.fullmatch(r"(\d+)x(\d+)G", row["devices"])
                if match:
                    found.append(Case(path.stem[:6], row["model"], int(match[1]), int(match[2]) * GIB))
    return found


def size_of(case: Case, patch: str) -> tuple[int, int, int]:
    if patch == "whole":
        x, y, z = (-(-edge // 32) * 32 for edge in WHOLE[case.table])
        return x, y, z
    edge = int(patch)
    return edge, edge, edge


def fewest(case: Case, patch: str, way: dict[str, Any]) -> Plan | None:
    """The plan with the fewest of the paper's devices on which training fits."""
    config = case.network()
    network = on_meta(lambda: build_network(config, in_channels=1, out_channels=CLASSES[case.table])).train()
    hardware = hardware_for(kind="cuda", name=f"v100-{case.memory // GIB}")
    problem = Problem(
        network=network,
        name=case.model,
        size=size_of(case, patch),
        batch=BATCHES[patch],
        hardware=hardware,
        micro_batches="auto",
        loss=planned_loss(LossConfig(), classes=CLASSES[case.table]),
        rehearse=rehearse,
        precision=way["precision"],
        recompute=way["recompute"],
    )
    problem = replace(problem, micro_batches=BATCHES[patch])
    return fewest_devices(problem, memory=case.memory, solve=in_slabs if way.get("slabs") else None)


def in_slabs(problem: Problem) -> Found:
    """All devices on one volume at a time."""
    if problem.devices == 1:
        return problem.solve()
    plan = next(
        slab_plans(
            problem.costed(problem.batch),
            ranks=problem.devices,
            replicas=1,
            micro_batches=problem.batch,
            stride=STRIDE,
            loss=problem.loss,
            memory=problem.memory,
        )
    )
    return Found(plan, fits=all(load.peak_bytes <= (load.memory_bytes or 0) for load in plan.devices))


def main() -> None:
    chosen = options(HERE, description=__doc__ or "")
    at = circumstances()
    listed = cases()[:1] if chosen.quick else cases()
    data, tables = [], []
    for table in sorted({case.table for case in listed}):
        patches = ["64"] if chosen.quick else ["64", "128", LARGEST[table]]
        for patch in dict.fromkeys(patches):
            rows = []
            for case in (case for case in listed if case.table == table):
                cells = []
                for title, way in WAYS.items():
                    plan = fewest(case, patch, way)
                    item: dict[str, Any] = {
                        "table": table, "model": case.model, "patch": patch, "way": title,
                        "paper": case.devices, "memory": case.memory,
                        "ours": plan.choices.processes if plan else None,
                    }  # fmt: skip
                    if plan is not None:
                        item |= {"peaks": [load.peak_bytes for load in plan.devices], "seconds": plan.step_seconds}
                        item |= {"choices": plan.headline()}
                    data.append(item)
                    cells.append(f"{plan.choices.processes} ({plan.step_seconds:.2f} s)" if plan else "more than 64")
                    print(case, patch, title, cells[-1], flush=True)
                rows.append([case.model, f"{case.devices} x {case.memory // GIB} GiB", *cells])
            heading = f"{TITLES[table]}, {size_text(table, patch)}, batch {BATCHES[patch]}"
            tables.append((heading, ["model", "paper", *(f"ours, {title}" for title in WAYS)], rows))
    write(
        chosen.out,
        "paper_hardware",
        title="The paper's cases on the paper's cards",
        summary=_summary(data),
        tables=tables,
        data=data,
        at=at,
    )


TITLES = {"table3": "Table 3 (head and neck, 10 classes)", "table5": "Table 5 (liver, 3 classes)"}


def size_text(table: str, patch: str) -> str:
    return "whole, " + "x".join(map(str, WHOLE[table])) if patch == "whole" else f"{patch}^3"


def _summary(data: list[dict[str, Any]]) -> list[str]:
    lines = []
    for title in WAYS:
        for patch in dict.fromkeys(item["patch"] for item in data):
            of = [item for item in data if item["way"] == title and item["patch"] == patch]
            half = sum(1 for item in of if item["ours"] is not None and 2 * item["ours"] <= item["paper"])
            same = sum(1 for item in of if item["ours"] is not None and item["ours"] <= item["paper"])
            lines.append(
                f"{patch}, {title}: half the paper's devices or fewer in {half} of {len(of)} cases, as many or fewer "
                f"in {same}"
            )
    return lines


if __name__ == "__main__":
    main()

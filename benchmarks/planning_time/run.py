"""How long `lampseg plan` takes for every network on 512 x 512 x 704 voxels: in a new process, and once more in it."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.shared.networks import CLASSES, LARGE
from benchmarks.shared.results import circumstances, options, write

SIZE, QUICK_SIZE = (512, 512, 704), (64, 64, 96)
COUNTS = (2, 4, 8, 64)
AIMS = {2: 10.0, 4: 10.0, 8: 10.0, 64: 60.0}
MEMORY = "80GiB"


def once(name: str, count: int, size: tuple[int, int, int]) -> dict[str, Any]:
    """In a process of its own: the seconds of imports and of two times planning, and what came out.

    The first number of `processor_seconds` is all that the process has taken until the first plan is there.
    """
    begun = time.perf_counter()
    from lampseg.commands.plan import subject_of
    from lampseg.config import Config
    from lampseg.errors import UserError
    from lampseg.training.plans import make_plans

    imported = time.perf_counter() - begun
    tree = {
        "network": LARGE[name].config(size).model_dump(exclude_none=True),
        "data": {"root": "unused"},
        "curriculum": [{"patch": "whole", "batch": 1, "steps": 1}],
        "parallel": {"devices": f"{count}x{MEMORY}"},
    }
    if LARGE[name].size_argument:
        tree["curriculum"][0]["patch"] = list(size)  # type: ignore[index]
    config = Config.model_validate(tree)
    seconds, busy, outcome = [], [], ""
    for before in (0.0, None):
        begun, before = time.perf_counter(), time.process_time() if before is None else before
        try:
            (plan,) = make_plans(subject_of(config, shape=size, classes=CLASSES))
            outcome = f"fits, fullest device {plan.peak_bytes / 2**30:.1f} GiB"
        except UserError as error:
            lines = str(error).splitlines()
            outcome = "does not fit; says what would" if len(lines) > 1 else lines[0]
        seconds.append(time.perf_counter() - begun)
        busy.append(time.process_time() - before)
    return {
        "network": name,
        "devices": count,
        "imports": imported,
        "seconds": seconds,
        "processor_seconds": busy,
        "outcome": outcome,
    }


def main() -> None:
    if len(sys.argv) == 4 and sys.argv[1] == "--once":
        size = QUICK_SIZE if sys.argv[3] == "quick" else SIZE
        name, count = sys.argv[2].rsplit(":", 1)
        print(json.dumps(once(name, int(count), size)))
        return
    chosen = options(Path(__file__).parent, description=__doc__ or "")
    at = circumstances()
    names = ["unet-32", "basicunet"] if chosen.quick else list(LARGE)
    found = []
    for name in names:
        for count in (2, 4) if chosen.quick else COUNTS:
            size = "quick" if chosen.quick else "full"
            command = [sys.executable, "-m", "benchmarks.planning_time.run", "--once", f"{name}:{count}", size]
            out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found.append(json.loads(out.splitlines()[-1]))
            print(found[-1], flush=True)
    rows = []
    for name in names:
        of = {item["devices"]: item for item in found if item["network"] == name}
        cells = [f"{item['processor_seconds'][0]:.1f} / {item['processor_seconds'][1]:.1f}" for item in of.values()]
        rows.append([LARGE[name].title, *cells, "; ".join(f"{k}: {item['outcome']}" for k, item in of.items())])
    late = [item for item in found if item["processor_seconds"][0] > AIMS[item["devices"]]]
    worst = {
        count: max(i["processor_seconds"][0] for i in found if i["devices"] == count)
        for count in {i["devices"] for i in found}
    }
    summary = [
        f"K = {count}: at most {seconds:.1f} s of one core in a new process (aim: {AIMS[count]:.0f} s)"
        for count, seconds in sorted(worst.items())
    ]
    summary.append(f"{len(found) - len(late)} of {len(found)} within their aim")
    counts = sorted(worst)
    write(
        chosen.out,
        "planning_time",
        title="Planning time",
        summary=summary,
        tables=[
            (
                f"Seconds on {'x'.join(map(str, QUICK_SIZE if chosen.quick else SIZE))}, batch 1, devices of {MEMORY}: "
                "first / second time in a process (seconds of one core)",
                ["network", *(f"K = {count}" for count in counts), "outcome"],
                rows,
            )
        ],
        data=found,
        at=at,
    )


if __name__ == "__main__":
    main()

"""What every benchmark shares: its options, the machine it ran on, and how results are written."""

import argparse
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from lampseg.hardware.device import device_name


def options(folder: Path, *, description: str) -> argparse.Namespace:
    """`--out` (the benchmark's own results unless given; `--quick` needs it) and `--quick`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few cases, to see that it works")
    found = parser.parse_args()
    if found.out is None:
        if found.quick:
            parser.error("--quick: its figures are not to be recorded; give a folder with --out")
        found.out = folder / "results"
    found.out.mkdir(parents=True, exist_ok=True)
    return found


def circumstances() -> dict[str, Any]:
    """When, where and with what."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{device_name('cpu')}, {os.cpu_count()} cores, {platform.machine()}, {platform.system()}",
        "load": [round(load, 2) for load in os.getloadavg()],
        "torch": torch.__version__,
        "commit": _commit(),
    }


def _commit() -> str:
    here = Path(__file__).parent
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, cwd=here, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "not a checkout"


def write(
    out: Path,
    name: str,
    *,
    title: str,
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]],
    summary: Sequence[str],
    data: Any,
    at: dict[str, Any],
) -> None:
    """Writes NAME.json (everything) and NAME.md (the tables), and prints the summary."""
    (out / f"{name}.json").write_text(json.dumps({**at, "summary": list(summary), "data": data}, indent=1) + "\n")
    load = ", ".join(str(value) for value in at["load"])
    lines = [
        f"# {title}",
        "",
        f"{at['date'][:10]}, {at['machine']}, torch {at['torch']}, commit {at['commit']}; "
        f"load of the machine at the start (1, 5, 15 minutes): {load}.",
        "",
        *(f"- {line}" for line in summary),
    ]
    for heading, columns, rows in tables:
        lines += ["", f"## {heading}", "", "| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    (out / f"{name}.md").write_text("\n".join(lines) + "\n")
    for line in summary:
        print(line, flush=True)
    print(f"written: {out / name}.md, .json", flush=True)


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)

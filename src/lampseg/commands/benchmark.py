"""`benchmark`: runs a benchmark of the checkout that lampseg was installed from."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import lampseg
from lampseg.errors import UserError

FOLDER = "benchmarks"


def benchmarks() -> Mapping[str, str]:
    """What each benchmark is about, by name.

    Raises:
        UserError: lampseg was not installed from a checkout.
    """
    found = {}
    for script in sorted(_checkout().glob(f"{FOLDER}/*/run.py")):
        described = re.match(r'"""(.+?)("""|\n)', script.read_text(encoding="utf-8"))
        found[script.parent.name] = described[1] if described else ""
    return found


def benchmark(name: str, *, out: Path | None = None, quick: bool = False) -> None:
    """Runs it in a process of its own and waits for it.

    Args:
        out: folder for the results; None: the benchmark's own, in the checkout.
        quick: tiny sizes, to see that it works; needs `out`.

    Raises:
        UserError: no such benchmark, no checkout, or it failed.
    """
    known = benchmarks()
    if name not in known:
        raise UserError(f"benchmark: `{name}` is not known; choose one of {', '.join(known)}")
    if quick and out is None:
        raise UserError("--quick: its figures are not to be recorded; give a folder with --out")
    command = [sys.executable, "-m", f"{FOLDER}.{name}.run"]
    command += [] if out is None else ["--out", str(out.absolute())]
    command += ["--quick"] if quick else []
    root = _checkout()
    paths = [str(root), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    code = subprocess.run(command, cwd=root, env=environment, check=False).returncode
    if code:
        raise UserError(f"benchmark {name}: ended with exit code {code}; the message is above")


def _checkout() -> Path:
    """The folder that holds src/lampseg."""
    root = Path(lampseg.__file__).resolve().parents[2]
    if not (root / FOLDER / "README.md").is_file() or not (root / "pyproject.toml").is_file():
        raise UserError(
            "benchmark: the benchmarks are not part of the installed package; clone the repository and install it from "
            "there with `pip install --editable '.[benchmarks]'`"
        )
    return root

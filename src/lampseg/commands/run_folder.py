"""What identifies a run: its configuration, classes and stride, written before the first step."""

import contextlib
import json
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from lampseg.config import Config, dump_config, load_config
from lampseg.errors import UserError
from lampseg.evaluation.tables import write_text
from lampseg.version import __version__

_PROBE = ".writable"
# What a run that never began may have left: `begin_run` writes the configuration last.
_LEFT = ("preprocessed", "task.json", "environment.json")
# What a resumed run must have in common with its beginning: everything that decides the weights.
_DECISIVE = ("network", "data", "curriculum", "sampling", "augmentation", "loss", "optimizer", "precision", "seed")


@dataclass(frozen=True)
class Task:
    """What `predict` has to know besides the weights."""

    classes: tuple[str, ...]
    stride: tuple[int, int, int]
    window: tuple[int, int, int] | None = None
    """The only size that the network takes, if it takes no other."""
    channels: tuple[str, ...] = ("image",)
    """Of the images, in order."""


def check_run_folder(run: Path, config: Config, *, resume: bool) -> None:
    """Checks that a run can be begun, or continued, in a folder, before any work is done for it.

    What an attempt that failed before the first step has left may be there; preprocessed volumes are reused.

    Raises:
        UserError: the folder holds a run and `resume` is not set, or the other way round; it holds something else;
            it was begun with another configuration; it can't be written.
    """
    written = run / "config.yaml"
    try:
        there = sorted(path.name for path in run.iterdir()) if run.is_dir() else []
        is_file = run.exists() and not run.is_dir()
    except OSError as error:
        raise UserError(f"{run}: cannot be read ({error.strerror}); choose another folder for --run") from error
    if is_file:
        raise UserError(f"{run}: is a file; choose a folder for --run")
    if resume:
        if not written.is_file():
            raise UserError(f"{run}: there is no run to resume (no config.yaml); leave out --resume to begin one")
        _check_same(run, load_config(written), config)
    elif written.exists():
        raise UserError(f"{run}: already holds a run; continue it with --resume or choose another folder")
    elif foreign := [name for name in there if name not in _LEFT and not name.startswith(_PROBE)]:
        raise UserError(f"{run}: is not empty (there is {foreign[0]}); choose a new or empty folder for --run")
    check_writable(run, option="--run")


def begin_run(run: Path, config: Config, task: Task) -> None:
    """Writes what identifies the run, the configuration last: a folder with a config.yaml is that of a run.

    Raises:
        UserError: the folder can't be written.
    """
    write_text(run / "task.json", json.dumps(asdict(task)))
    write_text(run / "environment.json", json.dumps(environment(), indent=1))
    write_text(run / "config.yaml", dump_config(config))


def read_task(run: Path) -> Task:
    """Raises UserError if the folder is not that of a run."""
    try:
        tree = json.loads((run / "task.json").read_text(encoding="utf-8"))
        x, y, z = (int(step) for step in tree["stride"])
        stride = (x, y, z)
        classes, channels = (tuple(str(name) for name in tree[key]) for key in ("classes", "channels"))
        return Task(classes, stride, stride if tree.get("window") else None, channels)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{run}: not the folder of a run, its task.json cannot be read ({error}); give the folder that "
            "`lampseg train --run` wrote"
        ) from error


def environment() -> dict[str, str]:
    """The versions that a result depends on."""
    import monai

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "lampseg": __version__,
        "python": sys.version.split()[0],
        "torch": str(torch.__version__),
        "monai": str(monai.__version__),
        "system": f"{platform.system()} {platform.machine()}",
        "devices": ", ".join(gpus) or "CPU",
    }


def check_writable(folder: Path, *, option: str) -> None:
    """Makes the folder and writes into it: permission bits say nothing of a read-only mount or of what root may do.

    Raises:
        UserError: it can't be written; `option` names what the user may change.
    """
    probe = folder / f"{_PROBE}.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"lampseg")
        probe.unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
        raise UserError(
            f"{folder}: the folder cannot be written ({error.strerror or error}); free space or choose another folder "
            f"for {option}"
        ) from error


def _check_same(run: Path, before: Config, now: Config) -> None:
    old, new = _fields(before), _fields(now)
    faults = [
        f"`{field}` was {old.get(field, 'not there')}, now {new.get(field, 'not there')}"
        for field in dict.fromkeys((*old, *new))
        if old.get(field) != new.get(field)
    ]
    if faults:
        raise UserError(
            f"{run}: was begun with another configuration: {'; '.join(faults)}. Resume with {run / 'config.yaml'}, "
            "or begin a new run in another folder"
        )


def _fields(config: Config) -> dict[str, Any]:
    """The decisive fields by their dotted names."""
    tree = config.model_dump(mode="json", include=set(_DECISIVE), exclude={"data": {"cache", "jobs", "prefetch"}})
    flat: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, item in value.items():
                walk(f"{name}.{key}" if name else key, item)
        elif name == "curriculum":
            for index, item in enumerate(value):
                walk(f"{name}.{index}", item)
        else:
            flat[name] = value

    walk("", tree)
    flat["parallel.micro_batches"] = config.parallel.micro_batches  # BatchNorm and dropout follow the micro-batches
    return flat

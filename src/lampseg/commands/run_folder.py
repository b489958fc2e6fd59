"""What identifies a run: its configuration, classes and stride, written before the first step."""

import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lampseg.config import Config, dump_config, load_config
from lampseg.errors import UserError
from lampseg.evaluation.tables import write_text
from lampseg.version import __version__

# What a resumed run must have in common with its beginning: everything that decides the weights.
_DECISIVE = ("network", "data", "curriculum", "sampling", "loss", "optimizer", "precision", "seed")


@dataclass(frozen=True)
class Task:
    """What `predict` has to know besides the weights."""

    classes: tuple[str, ...]
    stride: tuple[int, int, int]


def begin_run(run: Path, config: Config, task: Task, *, resume: bool) -> None:
    """Creates the run folder, or checks that it can be continued.

    Raises:
        UserError: the folder holds a run and `resume` is not set, or the other way round; it was begun with
            another configuration; it can't be written.
    """
    written = run / "config.yaml"
    if resume:
        if not written.is_file():
            raise UserError(f"{run}: there is no run to resume (no config.yaml); leave out --resume to begin one")
        _check_same(run, load_config(written), config)
    elif run.exists() and (not run.is_dir() or any(path.name != "preprocessed" for path in run.iterdir())):
        raise UserError(f"{run}: already holds something; continue it with --resume or choose another folder")
    write_text(run / "task.json", json.dumps({"classes": task.classes, "stride": task.stride}))
    write_text(run / "environment.json", json.dumps(environment(), indent=1))
    write_text(written, dump_config(config))


def read_task(run: Path) -> Task:
    """Raises UserError if the folder is not that of a run."""
    try:
        tree = json.loads((run / "task.json").read_text())
        return Task(tuple(tree["classes"]), tuple(tree["stride"]))
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{run}: not a run folder, its task.json cannot be read ({error})") from error


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


def _check_same(run: Path, before: Config, now: Config) -> None:
    faults = []
    for section in _DECISIVE:
        old, new = _plain(getattr(before, section)), _plain(getattr(now, section))
        if old != new:
            faults.append(f"`{section}` was {old}, now {new}")
    if faults:
        raise UserError(
            f"{run}: was begun with another configuration: {'; '.join(faults)}. Resume with {run / 'config.yaml'}, "
            "or begin a new run in another folder"
        )


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        tree = value.model_dump(mode="json")
        tree.pop("cache", None)  # where the preprocessed volumes lie changes nothing
        return tree
    return [_plain(item) for item in value] if isinstance(value, tuple) else value

"""The verb `train`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lampseg.verbs.options import with_devices


@dataclass(frozen=True)
class Train:
    """Train a network by the curriculum, split over the devices.

    Any field of the configuration can be set by its dotted name, with a value as in YAML:
    --network.filters 64 --curriculum.0.patch "[64, 64, 32]"
    """

    config: tyro.conf.Positional[Path]
    """YAML file."""
    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """Folder of the run: configuration, plan, metrics, checkpoints, report."""
    devices: Annotated[str | None, tyro.conf.arg(metavar="N[xMEMORY]")] = None
    """How many processes (CUDA if present, else CPU): 2, or 2x16GiB to state the memory of each."""
    resume: bool = False
    """Continue at the last checkpoint, also on another number of devices."""
    plan: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Plans to use instead of the planner's: a file of `lampseg plan --json`, perhaps edited."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.train import train
        from lampseg.config import load_config

        config = load_config(self.config, overrides=with_devices(overrides, self.devices))
        train(config, run=self.run_folder, resume=self.resume, plan=self.plan)

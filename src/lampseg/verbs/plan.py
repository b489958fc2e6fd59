"""The verb `plan`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from lampseg.errors import UserError
from lampseg.light import uncollected
from lampseg.verbs.options import with_devices


@dataclass(frozen=True)
class Plan:
    """Say what fits and how the network is split, before anything runs.

    Any field of the configuration can be set by its dotted name, with a value as in YAML:
    --network.filters 64 --curriculum.0.patch "[64, 64, 32]"
    """

    config: tyro.conf.Positional[Path]
    """YAML file."""
    devices: Annotated[str | None, tyro.conf.arg(metavar="N[xMEMORY]")] = None
    """How many, with the memory of each if wanted: 4, 4x16GiB. They need not exist here."""
    json: bool = False
    """Print the plans as JSON."""
    shape: Annotated[tuple[int, int, int] | None, tyro.conf.arg(metavar="X Y Z")] = None
    """Largest volume in voxels, to plan without data."""
    classes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of classes with the background, to plan without data."""
    channels: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of image channels, to plan without data; without it 1."""
    largest_patch: bool = False
    """Instead: the largest patch that fits the devices, with the last curriculum stage's batch."""
    fewest_devices: Annotated[str | None, tyro.conf.arg(metavar="MEMORY")] = None
    """Instead: the fewest devices of so much memory each (such as 16GiB) on which the last curriculum stage fits."""

    def run(self, overrides: dict[str, str]) -> None:
        with uncollected():
            self._run(overrides)

    def _run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.plan import plan_fewest_devices, plan_largest_patch, subject_of
        from lampseg.config import load_config
        from lampseg.partition import Plan as PlanValue
        from lampseg.partition import plans_to_json
        from lampseg.partition.show import show_plan
        from lampseg.training.plans import make_plans

        if self.largest_patch and self.fewest_devices is not None:
            raise UserError("--largest-patch and --fewest-devices are two questions: ask one at a time")
        config = load_config(self.config, overrides=with_devices(overrides, self.devices))
        errors = Console(stderr=True)
        with errors.status("planning"):
            subject = subject_of(config, shape=self.shape, classes=self.classes, channels=self.channels)
            plans: tuple[PlanValue, ...]
            if self.largest_patch:
                size, made = plan_largest_patch(subject)
                titles, plans = [f"the largest patch that fits: {list(size)}"], (made,)
            elif self.fewest_devices is not None:
                made = plan_fewest_devices(subject, memory=self.fewest_devices)
                titles, plans = [f"the fewest devices of {self.fewest_devices}: {made.choices.processes}"], (made,)
            else:
                plans = make_plans(subject)
                titles = [
                    f"curriculum stage {number}: patch {stage.patch}, batch {stage.batch}"
                    for number, stage in enumerate(config.curriculum, start=1)
                ]
        if self.json:
            sys.stdout.write(plans_to_json(plans) + "\n")
            sys.stdout.flush()
            return
        console = Console()
        for title, made in zip(titles, plans, strict=True):
            console.rule(title, align="left")
            console.print(show_plan(made), highlight=False)

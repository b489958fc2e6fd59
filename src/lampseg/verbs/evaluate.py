"""The verb `evaluate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lampseg.verbs.options import no_overrides


@dataclass(frozen=True)
class Evaluate:
    """Score predictions against labels per case and class: overlap, surface distances in mm, volumes.

    Classes that were not annotated in a case are left out of their mean; see docs/reference/evaluation.md.
    """

    predictions: Path
    """Folder of label files."""
    labels: Path
    """Folder of the true label files (its parent's dataset.json names the classes), or a dataset's root."""
    out: Path
    """Folder for evaluation.json and .csv (every case) and summary.json and .csv."""
    metrics: Annotated[str, tyro.conf.arg(metavar="NAME,NAME")] = "all"
    """dice, jaccard, sensitivity, precision, volume_error, relative_volume_error, hd95, assd, nsd; without it all."""
    tolerance: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MM [CLASS=MM ...]")] = ("2",)
    """Of nsd, the surface Dice, in mm: for all classes, and others for some."""
    jobs: int = 1
    """Cases scored at the same time, each by its own process and in its own memory."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.evaluate import evaluate_folders

        no_overrides(overrides)
        evaluate_folders(
            self.predictions,
            self.labels,
            out=self.out,
            metrics=self.metrics,
            tolerance=self.tolerance,
            jobs=self.jobs,
        )

"""The verb `report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from lampseg.verbs.options import no_overrides


@dataclass(frozen=True)
class Report:
    """Write a run's report.html again, with predictions of your choice; see docs/how-to/read-the-report.md."""

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """Folder of the run."""
    predictions: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of label files that `lampseg predict` wrote: scored, and shown where they are worst."""
    labels: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the true label files, or a dataset's root."""
    images: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the images; without it those of the dataset.json, or of the predictions.json that predict wrote."""
    evaluation: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """An evaluation.json of these predictions, so that they need not be scored again."""
    comparison: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """A comparison.json of several ways to segment the cases."""
    worst: Annotated[int, tyro.conf.arg(metavar="N")] = 4
    """How many of the worst results to show with slices."""
    viewer: Annotated[tuple[str, ...], tyro.conf.arg(metavar="CASE|N")] = ("1",)
    """Cases for the interactive viewer: names, or how many of the worst; 0 for none."""
    viewer_size: Annotated[float, tyro.conf.arg(metavar="MB")] = 8.0
    """Largest share of the page for each of them; larger volumes are shown with fewer voxels."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The page; without it report.html in the run's folder."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.report import ReportOptions, report

        no_overrides(overrides)
        options = ReportOptions(
            predictions=self.predictions,
            labels=self.labels,
            images=self.images,
            evaluation=self.evaluation,
            comparison=self.comparison,
            worst=self.worst,
            viewer=self.viewer,
            viewer_bytes=round(1e6 * self.viewer_size),
            out=self.out,
        )
        page = report(self.run_folder, options)
        size = f"{page.stat().st_size / 1e6:.1f} MB"
        Console().print(f"{page}: {size}", markup=False, highlight=False, soft_wrap=True)

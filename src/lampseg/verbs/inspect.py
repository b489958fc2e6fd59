"""The verb `inspect`."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from lampseg.errors import UserError
from lampseg.verbs.options import no_overrides

FILE_WIDTH = 150
"""Columns of the tables where they do not go to a terminal."""


@dataclass(frozen=True)
class Inspect:
    """Look at a dataset before training: grids, intensities, classes, what is odd, and the memory that it implies.

    Exit code 3: done, but some cases could not be read (they are listed at the end). See
    docs/how-to/inspect-your-data.md.
    """

    root: tyro.conf.Positional[Path]
    """Folder of the dataset, or of DICOM series."""
    format: str = "auto"
    """As data.format, or dicom."""
    jobs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Processes, each with one volume in memory; without it as many as processors, at most 4."""
    json: bool = False
    """Print JSON instead of tables."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the JSON to a file, beside printing the tables."""
    networks: Annotated[str | None, tyro.conf.arg(metavar="NAME-FILTERS,...")] = None
    """Networks whose memory is told, such as unet-32,seunet-128; or none. Without it U-Net and SE-U-Net, 32 to 128."""
    spacing: Annotated[tuple[float, float, float] | None, tyro.conf.arg(metavar="X Y Z")] = None
    """To which the largest volume is resampled, in mm; without it its own."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.inspect import FAULTY, inspect, write_inspection

        no_overrides(overrides)
        if self.json and self.out is not None:
            raise UserError("--json prints what --out writes: give one of them")
        errors = Console(stderr=True)
        networks = None if self.networks is None else tuple(n for n in self.networks.split(",") if n != "none")
        found = inspect(
            self.root,
            format=self.format,
            jobs=self.jobs,
            networks=networks,
            spacing=self.spacing,
            console=errors if errors.is_terminal else None,
        )
        if self.out is not None:
            write_inspection(found, self.out)
        if self.json:
            sys.stdout.write(found.as_json() + "\n")
            sys.stdout.flush()
        else:
            from lampseg.commands.inspect_tables import print_inspection

            console = Console()
            print_inspection(found, console if console.is_terminal else Console(width=FILE_WIDTH))
        for case_id, message in sorted(found.faulty.items()):
            errors.print(f"{case_id}: {message}", markup=False, highlight=False, soft_wrap=True)
        if found.faulty:
            sys.exit(FAULTY)

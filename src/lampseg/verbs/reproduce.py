"""The verb `reproduce`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from lampseg.verbs.options import no_overrides


@dataclass(frozen=True)
class Reproduce:
    """Do the paper's experiments on one dataset and fill its tables, each cell with the paper's figure and ours.

    What is done is skipped and what was begun is continued, so the same command goes on where it was stopped.
    """

    study: tyro.conf.Positional[Literal["han", "liver"]]
    """Head and neck (Tables 1 to 3) or liver (Tables 4 and 5)."""
    out: Path
    """Folder of the study: runs, predictions, tables and report.html."""
    data: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder of the data. Smaller scales can do without: a phantom stands for them."""
    only: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME")] = ()
    """Experiments, such as seunet-128; without it all six."""
    scale: Literal["full", "study", "tiny", "smoke"] = "full"
    """full: the paper's sizes; study, tiny: the same path in an hour or in minutes on a CPU; smoke: two steps each."""
    devices: Annotated[str | None, tyro.conf.arg(metavar="N[xMEMORY]")] = None
    """As in train."""
    seed: int = 0
    rounds: int = 3
    """Of timed inference."""
    selected_on_test: bool = False
    """Also choose as the original code does, in tables of their own: for each organ the best on the test set."""
    dry_run: bool = False
    """Only say what it will cost; without --data for the sizes that the paper states."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.reproduce import Options, reproduce

        no_overrides(overrides)
        options = Options(self.only, self.scale, self.devices, self.seed, self.rounds, self.selected_on_test)
        page = reproduce(self.study, data=self.data, out=self.out, options=options, dry_run=self.dry_run)
        if page is not None:
            Console().print(f"report: {page}", markup=False, highlight=False)

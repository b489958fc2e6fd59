"""The verb `compare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lampseg.verbs.options import no_overrides


@dataclass(frozen=True)
class Compare:
    """Test whether run B is better than run A on the cases that both scored: Wilcoxon signed-rank, with the effect."""

    a: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="A")]
    """evaluation.json of a run, or the folder that holds it."""
    b: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="B")]
    """The same of the run to compare with it."""
    metric: Annotated[str, tyro.conf.arg(metavar="NAME,NAME")] = "dice"
    """Metrics of evaluate, or all."""
    names: Annotated[tuple[str, str] | None, tyro.conf.arg(metavar="A B")] = None
    """What to call the runs; without it, as their folders."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for compare.json and compare.csv."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.compare import compare

        no_overrides(overrides)
        compare(self.a, self.b, metric=self.metric, names=self.names, out=self.out)

"""The verb `benchmark`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from lampseg.verbs.options import no_overrides


@dataclass(frozen=True)
class Benchmark:
    """Run a benchmark of the checkout that lampseg was installed from; without a name, list them."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[NAME]")] = None
    """Which, such as plan_accuracy."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for the results; without it they replace the recorded ones in the checkout."""
    quick: bool = False
    """Tiny sizes and few cases, to see that it works; needs --out."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.benchmark import benchmark, benchmarks

        no_overrides(overrides)
        if self.name is None:
            for name, claim in benchmarks().items():
                Console().print(f"{name}: {claim}", highlight=False, markup=False, soft_wrap=True)
            return
        benchmark(self.name, out=self.out, quick=self.quick)

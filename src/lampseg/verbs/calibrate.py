"""The verb `calibrate`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lampseg.verbs.options import no_overrides


@dataclass(frozen=True)
class Calibrate:
    """Measure this machine once, in about a minute, so that plans know its speed; see docs/how-to/calibrate.md."""

    devices: Annotated[str | None, tyro.conf.arg(metavar="N")] = None
    """How many processes measure at the same time, as in train."""
    precision: tuple[Literal["float32", "bfloat16", "float64"], ...] = ()
    """What to measure beside float32; without it, on CUDA, bfloat16."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File; without it LAMPSEG_HARDWARE, or lampseg/hardware.json in the cache folder, where plans look for it."""
    quick: bool = False
    """A few tiny sizes, to see that it works; the figures are not to be trusted."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.calibrate import calibrate

        no_overrides(overrides)
        calibrate(devices=self.devices, precisions=self.precision, out=self.out, quick=self.quick)

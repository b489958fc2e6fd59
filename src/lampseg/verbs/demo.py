"""The verb `demo`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lampseg.verbs.options import no_overrides


@dataclass(frozen=True)
class Demo:
    """The main job on the phantom: plan, curriculum on two processes, whole volumes against sliding windows."""

    out: Path = Path("demo")
    """Folder to be made."""
    devices: str = "2"
    """As in train."""
    scale: Literal["full", "tiny"] = "full"
    """full: about 5 minutes on 2 cores; tiny: a minute, to see that everything works."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.demo import demo

        no_overrides(overrides)
        demo(self.out, devices=self.devices, scale=self.scale)

"""The verb `predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from lampseg.verbs.options import no_overrides, three


@dataclass(frozen=True)
class Predict:
    """Segment images with the model of a run; each result lies on its image's own grid."""

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """Folder of the run."""
    out: Path
    """Folder for the results."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """NIfTI files, or folders of them."""
    devices: Annotated[str | None, tyro.conf.arg(metavar="N[xMEMORY]")] = None
    """As in train; without it as the run was trained."""
    checkpoint: str = "best"
    """best, last, stage-N, or a safetensors file."""
    window: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="N [N N]")] = None
    """Sliding window in voxels, one number or three; without it the whole volume in one pass."""
    overlap: float = 0.25
    """Of sliding windows, as a fraction."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.predict import PredictOptions, predict

        no_overrides(overrides)
        options = PredictOptions(self.checkpoint, three(self.window), self.overlap)
        predict(self.run_folder, self.images, out=self.out, devices=self.devices, options=options)

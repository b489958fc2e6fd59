"""The verb `predict`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

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
    """NIfTI files, folders of them, folders of one DICOM series each, or a dataset.json for its test list."""
    devices: Annotated[str | None, tyro.conf.arg(metavar="N[xMEMORY]")] = None
    """As in train; without it as the run was trained."""
    checkpoint: str = "best"
    """best, last, stage-N, or a safetensors file."""
    window: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="N [N N]")] = None
    """Sliding window in voxels, one number or three; without it the whole volume in one pass."""
    overlap: float = 0.25
    """Of sliding windows, as a fraction."""
    windows_per_pass: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """How many windows go through the network at once; without it 4 of up to 64^3 voxels, fewer of larger ones."""
    mirror: Annotated[str, tyro.conf.arg(metavar="AXES")] = ""
    """Average over flips along these axes, such as y,z (x runs from left to right)."""
    mirror_swaps_pairs: bool = False
    """With x: left and right organs (Parotid_L, Parotid_R) change places when flipped."""
    resample: Literal["logits", "labels"] = "logits"
    """What is brought to the image's grid: logits, trilinear, then the class is chosen; or labels, to the nearest."""
    largest_component: Annotated[str, tyro.conf.arg(metavar="NAMES")] = ""
    """all, or organs such as liver,spleen: keep the largest connected part of each."""
    probabilities: bool = False
    """Also write NAME.probabilities.npz: each class's, float16, on the network's grid."""
    skip_existing: bool = False
    """Leave out images whose results are there, to go on with a long list; else they are made again."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.predict import PredictOptions, predict

        no_overrides(overrides)
        options = PredictOptions(
            self.checkpoint,
            three(self.window),
            self.overlap,
            self.windows_per_pass,
            self.mirror,
            self.mirror_swaps_pairs,
            self.resample,
            self.largest_component,
            self.probabilities,
            self.skip_existing,
        )
        predict(self.run_folder, self.images, out=self.out, devices=self.devices, options=options)

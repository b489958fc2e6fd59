"""Logits of one prepared volume, in one pass or by sliding window (MONAI), through a model on any number of ranks."""

from dataclasses import dataclass

import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from lampseg.errors import UserError
from lampseg.parallel.model import ParallelModel
from lampseg.training.supervision import logits_of


@dataclass(frozen=True)
class SlidingWindow:
    """Windows of `size` voxels that overlap by a fraction, blended with a Gaussian or constant weight."""

    size: tuple[int, int, int]
    overlap: float = 0.25
    mode: str = "gaussian"
    batch: int = 4
    """Windows in flight at once; each is a micro-batch of the pipeline."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap: {self.overlap} is not a fraction from 0 to below 1")


def sliding_labels(model: ParallelModel, x: Tensor, window: SlidingWindow) -> Tensor | None:
    """Class indices (X, Y, Z) of a padded volume x (1, C, X, Y, Z), where the output is; elsewhere None.

    Every rank of a replica walks over the same windows: the first gives their voxels, the one with the output blends
    their logits.
    """

    def run(windows: Tensor) -> Tensor:
        shapes = [(1, *windows.shape[1:])] * len(windows)
        outputs = list(model.runner.predict(shapes, load=lambda m: windows[m : m + 1]))
        if not model.yields_output:
            return windows.new_zeros((len(windows), 1, *windows.shape[2:]))  # one channel is enough to walk on
        return torch.cat([logits_of(output)[0].float() for output in outputs])

    inferer = SlidingWindowInferer(
        roi_size=window.size, sw_batch_size=window.batch, overlap=window.overlap, mode=window.mode
    )
    logits = inferer(x, run)
    assert isinstance(logits, Tensor)
    return logits[0].argmax(0) if model.yields_output else None

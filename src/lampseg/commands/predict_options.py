"""What `predict` may be told beside the run and the images, and what is not possible."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from lampseg.commands.run_folder import Task
from lampseg.errors import UserError
from lampseg.inference.components import chosen_classes
from lampseg.inference.mirror import Mirror, mirror_of
from lampseg.inference.predictor import Result
from lampseg.inference.windows import SlidingWindow


@dataclass(frozen=True)
class PredictOptions:
    """What to predict with, beside the run and the images."""

    checkpoint: str = "best"
    """best, last, stage-N, or the path of a safetensors file."""
    window: tuple[int, int, int] | None = None
    """Sliding window in voxels; None: the whole volume in one pass."""
    overlap: float = 0.25
    """Of sliding windows, as a fraction."""
    windows_per_pass: int | None = None
    """None: by their size."""
    mirror: str = ""
    """Axes to flip along, such as `y,z`; probabilities are averaged over all combinations."""
    mirror_swaps_pairs: bool = False
    resample: Literal["logits", "labels"] = "logits"
    """What is brought to the image's grid."""
    largest_component: str = ""
    """`all`, or names of classes of which the largest connected component stays."""
    probabilities: bool = False
    skip_existing: bool = False

    def checked(self, task: Task) -> "PredictOptions":
        """These options, with the window that the network needs if it takes one size only.

        Raises:
            UserError: they are not possible for the network.
        """
        stride = task.stride
        if not 0 <= self.overlap < 1:
            raise UserError(f"--overlap: {self.overlap} is not a fraction from 0 to below 1")
        if self.windows_per_pass is not None and self.windows_per_pass < 1:
            raise UserError(f"--windows-per-pass: {self.windows_per_pass} is not 1 or more")
        self.mirrored(task)
        chosen_classes(self.largest_component, task.classes)
        if self.window is not None and any(size < 1 or size % step for size, step in zip(self.window, stride)):
            fitting = [max(step, round(size / step) * step) for size, step in zip(self.window, stride)]
            raise UserError(
                f"--window: {list(self.window)} is not a multiple of the network's total stride {list(stride)}; use "
                f"for instance {fitting}"
            )
        if task.window is None:
            return self
        if self.window not in (None, task.window):
            raise UserError(
                f"--window: {list(self.window or ())} is not possible, the network only takes volumes of "
                f"{list(task.window)} voxels; leave --window out"
            )
        return dataclasses.replace(self, window=task.window)

    def sliding(self) -> SlidingWindow | None:
        if self.window is None:
            return None
        return SlidingWindow(self.window, self.overlap, batch=self.windows_per_pass)

    def mirrored(self, task: Task) -> Mirror:
        """Raises UserError: no such axes, or left and right would be mixed."""
        return mirror_of(self.mirror, classes=task.classes, swaps_pairs=self.mirror_swaps_pairs)

    def result(self, task: Task) -> Result:
        largest = chosen_classes(self.largest_component, task.classes)
        return Result(task.classes, self.resample, largest, self.probabilities)

    def arguments(self) -> list[str]:
        """The same as command-line arguments."""
        words = ["--checkpoint", self.checkpoint, "--overlap", str(self.overlap), "--resample", self.resample]
        if self.windows_per_pass is not None:
            words += ["--windows-per-pass", str(self.windows_per_pass)]
        if self.window is not None:
            words += ["--window", *(str(size) for size in self.window)]
        for name in ("mirror", "largest_component"):
            words += [f"--{name.replace('_', '-')}", getattr(self, name)] if getattr(self, name) else []
        for name in ("mirror_swaps_pairs", "probabilities", "skip_existing"):
            words += [f"--{name.replace('_', '-')}"] if getattr(self, name) else []
        return words

    def record(self) -> dict[str, Any]:
        """What decides the labels, as the list of results keeps it."""
        return {
            "checkpoint": self.checkpoint,
            "window": None if self.window is None else list(self.window),
            "overlap": None if self.window is None else self.overlap,
            "mirror": self.mirror,
            "resample": self.resample,
            "largest_component": self.largest_component,
        }

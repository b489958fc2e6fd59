"""What a dataset is: cases, each with its files and the classes drawn in it, and names for classes and channels."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Case:
    """One scan and, if there is one, its label map."""

    id: str
    images: tuple[Path, ...]
    """One file that holds all channels, or one file for each."""
    label: Path | None
    annotated: tuple[int, ...] | None
    """Class indices (from 1) that were drawn in this case; None: all of them."""
    masks: tuple[tuple[int, Path], ...] = ()
    """Class index and the file of its mask, where every organ has a file of its own instead of a label map."""

    @property
    def image(self) -> Path:
        """The first channel's file, after which a prediction is called."""
        return self.images[0]

    @property
    def labelled(self) -> bool:
        """Whether there is anything to learn from, or to evaluate against."""
        return self.label is not None or bool(self.masks)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the case."""
        labels = () if self.label is None else (self.label,)
        return (*self.images, *labels, *(path for _, path in self.masks))


@dataclass(frozen=True)
class Dataset:
    """The cases of a folder. `classes[i]` names label value i; `classes[0]` is the background."""

    root: Path
    name: str
    classes: tuple[str, ...]
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    channels: tuple[str, ...] = ("image",)
    """Names of the images' channels, in order."""
    validation: tuple[str, ...] | None = None
    """Ids of the training cases to validate on, where the data or a split file name them; None: drawn by seed."""

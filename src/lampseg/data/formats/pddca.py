"""The HaN data as PDDCA publishes them: 0522cNNNN/img.nrrd and structures/ORGAN.nrrd."""

from pathlib import Path

from lampseg.data.cases import Dataset
from lampseg.data.formats.organs import Part, case_folders, read_organs

IMAGE = "img.nrrd"
LOOKS_LIKE = f"CASE/{IMAGE} (PDDCA)"


def found(root: Path) -> bool:
    """Whether a folder has this layout."""
    return root.is_dir() and bool(case_folders(root, image=IMAGE))


def read(root: Path, *, training: tuple[Part, ...]) -> Dataset:
    """Reads the cases below `root` (in it, or in its parts); errors as `read_organs`."""
    return read_organs(root, name="PDDCA", image=IMAGE, mask="{organ}.nrrd", training=training)

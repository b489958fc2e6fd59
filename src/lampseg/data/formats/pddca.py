"""The HaN data as PDDCA publishes them: 0522cNNNN/img.nrrd and structures/ORGAN.nrrd."""

from pathlib import Path

from lampseg.data.cases import Dataset
from lampseg.data.formats.organs import Part, read_organs

IMAGE = "img.nrrd"


def read(root: Path, *, training: tuple[Part, ...]) -> Dataset:
    """Reads the cases below `root` (in it, or in its parts); errors as `read_organs`."""
    return read_organs(root, name="PDDCA", image=IMAGE, mask="{organ}.nrrd", training=training)

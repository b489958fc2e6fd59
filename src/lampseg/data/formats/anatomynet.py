"""The HaN data as AnatomyNet's authors preprocessed them: CASE/img_crp_v2.npy and structures/ORGAN_crp_v2.npy."""

from pathlib import Path

from lampseg.data.cases import Dataset
from lampseg.data.formats.organs import case_folders, read_organs

IMAGE = "img_crp_v2.npy"
LOOKS_LIKE = f"CASE/{IMAGE} (AnatomyNet)"


def found(root: Path) -> bool:
    """Whether a folder has this layout."""
    return root.is_dir() and bool(case_folders(root, image=IMAGE))


def read(root: Path) -> Dataset:
    """Reads the cases below `root` (in it, or in its collections); errors as `read_organs`.

    All cases but PDDCA's offsite ones are trained on, as by AnatomyNet and the paper: 261 and 10 (Section 3).
    """
    return read_organs(
        root, name="HaN", image=IMAGE, mask="{organ}_crp_v2.npy", training=("train", "optional", "onsite")
    )

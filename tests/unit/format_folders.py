"""Small datasets in every layout, for the tests of their readers: empty files, or volumes in NRRD and .npy."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np

from lampseg.data.formats.organs import ORGANS

LPS = np.diag([-1.0, -1.0, 1.0])
LABELS = {"background": 0, "liver": 1, "cancer": 2}


def touch(root: Path, *names: str) -> None:
    """Empty files, and the folders for them."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def describe(root: Path, **tree: Any) -> Path:
    """Writes dataset.json; returns the folder."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(tree))
    return root


def nnunet_folder(
    root: Path, *, cases: Iterable[str] = ("a", "b"), channels: int = 2, ending: str = ".nii.gz", **changed: Any
) -> Path:
    """Training cases with empty files; `changed` replaces keys of dataset.json, None removes them."""
    cases = tuple(cases)
    for case in cases:
        touch(root, *(f"imagesTr/{case}_{number:04d}{ending}" for number in range(channels)))
        touch(root, f"labelsTr/{case}{ending}")
    tree = {
        "channel_names": {str(number): f"T{number}" for number in range(channels)},
        "labels": LABELS,
        "numTraining": len(cases),
        "file_ending": ending,
    }
    return describe(root, **{key: value for key, value in {**tree, **changed}.items() if value is not None})


def write_nrrd(path: Path, array: Any, affine: Any, *, space: str = "left-posterior-superior", **header: Any) -> Path:
    """A volume (X, Y, Z), or (C, X, Y, Z) with an axis of channels in front; `affine` is RAS+."""
    signs = {"left-posterior-superior": (-1, -1, 1), "right-anterior-superior": (1, 1, 1), "LAS": (-1, 1, 1)}[space]
    placed = np.diag(signs) @ np.asarray(affine, dtype=np.float64)[:3]
    directions = placed[:, :3].T
    if array.ndim == 4:
        directions = np.vstack([np.full(3, np.nan), directions])
        header = {"kinds": ["list", "domain", "domain", "domain"], **header}
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {"space": space, "space directions": directions, "space origin": placed[:, 3], **header}
    nrrd.write(str(path), array, {key: value for key, value in fields.items() if value is not None})
    return path


def write_npy(path: Path, array: Any, affine: Any) -> Path:
    """A volume (X, Y, Z) as z, y, x, turned to left, posterior, superior; the affine (RAS+) is lost."""
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(affine), nibabel.orientations.axcodes2ornt("LPS"))
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, nibabel.apply_orientation(array, turn).transpose(2, 1, 0))
    return path


def organ_case(folder: Path, *, organs: Sequence[str] = ORGANS, npy: bool = False) -> Path:
    """Empty files of a case of the HaN data."""
    suffix = "_crp_v2.npy" if npy else ".nrrd"
    touch(folder, f"img{suffix}", *(f"structures/{organ}{suffix}" for organ in organs))
    return folder


def box(shape: tuple[int, int, int], low: int, high: int) -> Any:
    """A cube of ones in zeros."""
    mask = np.zeros(shape, np.uint8)
    mask[low:high, low:high, low:high] = 1
    return mask

"""Folders of head-and-neck cases, each with an image and one mask per organ, and the HaN data's split by number."""

import re
from pathlib import Path
from typing import Literal

from lampseg.data.cases import Case, Dataset
from lampseg.data.formats.described import checked, few
from lampseg.errors import UserError

ORGANS = (
    "BrainStem",
    "Chiasm",
    "Mandible",
    "OpticNerve_L",
    "OpticNerve_R",
    "Parotid_L",
    "Parotid_R",
    "Submandibular_L",
    "Submandibular_R",
)
"""The paper's nine, in the order of its tables; class 1 is the brain stem."""
Part = Literal["train", "optional", "onsite"]
"""Parts of PDDCA that can be trained on; the fourth, offsite, is the paper's test set."""

_PARTS = (("train", 1, 328), ("optional", 329, 479), ("offsite", 555, 746), ("onsite", 788, 878))


def part_of(case_id: str) -> str | None:
    """train, optional, offsite or onsite for a case of PDDCA, by its number (0522cNNNN); None for another name.

    Raises:
        UserError: the number is in none of the four ranges.
    """
    match = re.fullmatch(r"0522c(\d{4})", case_id)
    if match is None:
        return None
    number = int(match[1])
    for part, first, last in _PARTS:
        if first <= number <= last:
            return part
    raise UserError(
        f"{case_id}: no case of PDDCA has this number (train 0001 to 0328, optional 0329 to 0479, offsite 0555 to "
        "0746, onsite 0788 to 0878); rename or remove the folder"
    )


def case_folders(root: Path, *, image: str) -> list[Path]:
    """The folders that hold a file called `image`: in `root`, or one level further down."""
    folders = {path.parent for pattern in (f"*/{image}", f"*/*/{image}") for path in root.glob(pattern)}
    return sorted(folder for folder in folders if not any(p.startswith((".", "__")) for p in _below(root, folder)))


def orphans(root: Path, *, image: str) -> list[Path]:
    """Case folders that have structures but no image."""
    folders = {path.parent for pattern in ("*/structures", "*/*/structures") for path in root.glob(pattern)}
    return sorted(
        folder
        for folder in folders
        if not (folder / image).is_file() and not any(p.startswith((".", "__")) for p in _below(root, folder))
    )


def read_organs(root: Path, *, name: str, image: str, mask: str, training: tuple[Part, ...]) -> Dataset:
    """Reads folders CASE with `image` and `structures/ORGAN`; an organ without a file was not drawn.

    The offsite cases of PDDCA are the test set; its other parts are trained on if `training` names them; cases that
    are not of PDDCA always are.

    Args:
        mask: name of a mask's file, with {organ} in it.

    Raises:
        UserError: a case without image or without any mask, two of one name, unknown numbers, no training case.
    """
    lost = [str(folder) for folder in orphans(root, image=image)]
    if lost:
        raise UserError(
            f"{root}: {len(lost)} case(s) without {image}: {few(lost)}; copy it there, or remove the folder"
        )
    chosen: dict[bool, list[Case]] = {True: [], False: []}
    for folder in case_folders(root, image=image):
        part = part_of(folder.name)
        if part is None or part == "offsite" or part in training:
            chosen[part == "offsite"].append(_case(folder, image, mask))
    dataset = Dataset(root, name, ("background", *ORGANS), tuple(chosen[False]), tuple(chosen[True]), ("CT",))
    return checked(
        root,
        dataset,
        empty=f"there is no training case (the offsite cases 0522c0555 to 0522c0746 are the test set, and of the "
        f"others {', '.join(training) or 'none'} is trained on); add some, or set data.pddca_training",
        unlabelled=f"has no mask: nothing is called structures/{mask.format(organ='ORGAN')} ({', '.join(ORGANS)}); "
        "add one, or remove the folder",
    )


def _case(folder: Path, image: str, mask: str) -> Case:
    paths = ((index, folder / "structures" / mask.format(organ=organ)) for index, organ in enumerate(ORGANS, start=1))
    masks = tuple((index, path) for index, path in paths if path.is_file())
    drawn = tuple(index for index, _ in masks)
    return Case(folder.name, (folder / image,), None, None if len(drawn) in (0, len(ORGANS)) else drawn, masks)


def _below(root: Path, folder: Path) -> tuple[str, ...]:
    return folder.relative_to(root).parts

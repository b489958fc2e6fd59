"""A folder or a listing, in any of the layouts that are known -> the cases it holds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lampseg.config import DataConfig
from lampseg.data.cases import Case, Dataset
from lampseg.data.formats import anatomynet, listing, msd, nnunet, pddca
from lampseg.data.formats.described import few
from lampseg.data.formats.organs import Part, case_folders, orphans
from lampseg.data.split import draw_test, split_by_file, split_training
from lampseg.errors import UserError

__all__ = ["Case", "Dataset", "dataset_of", "format_of", "read_dataset", "split_training"]


@dataclass(frozen=True)
class _Format:
    name: str
    looks_like: str
    """What is looked for, in words."""
    found: Callable[[Path], bool]


# In the order in which they are tried; dataset.json belongs to two of them.
_FORMATS = (
    _Format("nnunet", nnunet.LOOKS_LIKE, nnunet.found),
    _Format("msd", msd.LOOKS_LIKE, msd.found),
    _Format("anatomynet", anatomynet.LOOKS_LIKE, anatomynet.found),
    _Format("pddca", pddca.LOOKS_LIKE, pddca.found),
    _Format("listing", listing.LOOKS_LIKE, listing.found),
)
FORMATS = tuple(form.name for form in _FORMATS)


def dataset_of(data: DataConfig) -> Dataset:
    """The dataset that a configuration names, its test set chosen as `data.test_cases` or `data.split` say.

    Raises:
        UserError: as `read_dataset`; the split names unknown cases, or leaves none to train on.
    """
    dataset = read_dataset(data.root, format=data.format, pddca_training=data.pddca_training)
    if data.split is not None:
        return split_by_file(dataset, data.split)
    if data.test_cases is not None:
        return draw_test(dataset, count=data.test_cases, seed=data.split_seed)
    return dataset


def read_dataset(
    root: Path, *, format: str = "auto", pddca_training: tuple[Part, ...] = ("train", "optional")
) -> Dataset:
    """Reads the cases of a folder or a listing (docs/reference/data-layout.md) and checks that every file is there.

    Args:
        format: msd, nnunet, pddca, anatomynet, listing; auto tells by the content.
        pddca_training: the parts of PDDCA that are trained on.

    Raises:
        UserError: no layout is recognised (what was looked for, what was found, and which folder nearby would do);
            whatever is wrong with the description, and missing files.
    """
    root = Path(root)
    if format not in ("auto", *FORMATS):
        raise UserError(f"data.format: {format!r} is not known; use `auto` or {', '.join(f'`{f}`' for f in FORMATS)}")
    kind = format_of(root) if format == "auto" else format
    if kind is None:
        raise UserError(_unrecognised(root))
    if format != "auto":
        _check_stated(root, format)
    if kind == "pddca":
        return pddca.read(root, training=pddca_training)
    readers = {"msd": msd.read, "nnunet": nnunet.read, "anatomynet": anatomynet.read, "listing": listing.read}
    return readers[kind](root)


def format_of(root: Path) -> str | None:
    """The layout of a folder, or of a listing, by its content; None if it has none that is known."""
    return next((form.name for form in _FORMATS if form.found(root)), None)


def _check_stated(root: Path, format: str) -> None:
    """Raises UserError where a stated layout can't be there at all: the readers take it from here."""
    if format == "listing":
        if root.is_dir():
            raise UserError(f"{root}: is a folder; data.format `listing` needs the path of a *.csv or *.json file")
        if not root.is_file():
            raise UserError(f"{root}: no such file; data.root must be the listing itself")
        if not listing.found(root):
            raise UserError(f"{root}: is no listing; give a *.csv or *.json file")
    elif format in ("pddca", "anatomynet"):
        image = pddca.IMAGE if format == "pddca" else anatomynet.IMAGE
        if not root.is_dir() or not (case_folders(root, image=image) or orphans(root, image=image)):
            raise UserError(f"{root}: there is no CASE/{image}, in this folder or one below it{_advice(root)}")
    elif not (root / "dataset.json").is_file():
        raise UserError(
            f"{root / 'dataset.json'}: no such file; data.root must be a folder with dataset.json, imagesTr/ and "
            f"labelsTr/{_advice(root)}"
        )


def _unrecognised(root: Path) -> str:
    """What was looked for, what was found, and what would do."""
    if not root.exists():
        return f"{root}: no such file or folder; data.root must be a dataset's folder, or a listing"
    if root.name == "dataset.json":
        return f"{root}: give the folder that it lies in, {root.parent}"
    if root.is_file():
        return f"{root}: is no listing; data.root must be a *.csv or *.json file that lists cases, or a folder"
    looked = "; ".join(form.looks_like for form in _FORMATS)
    names = [path.name + ("/" if path.is_dir() else "") for path in _inside(root)]
    return (
        f"{root}: no dataset is recognised here. Looked for: {looked}. Found: {few(names) or 'nothing'}"
        f"{_advice(root)}, see docs/reference/data-layout.md"
    )


def _advice(root: Path) -> str:
    """Which folder or file nearby would be right, or what is missing here."""
    if not root.is_dir():
        return ""
    lost = [folder for folder in orphans(root, image=pddca.IMAGE) if not (folder / anatomynet.IMAGE).is_file()]
    if (root / "imagesTr").is_dir():
        return "; imagesTr is here, but dataset.json is missing: copy it, too"
    if lost:
        return f"; {few(str(folder) for folder in lost)} has structures, but no {pddca.IMAGE}: copy it, too"
    folders = [path for path in _inside(root) if path.is_dir()]
    listings = [path for path in _inside(root) if path.suffix == ".csv"]
    below = [path for folder in folders for path in _inside(folder) if path.is_dir()]
    for path in (*folders, *listings, *below, root.parent):
        if _recognised(path):
            return f"; {path} would be right: set data.root to it"
    return "; a dataset in another layout can be listed in a CSV file"


def _inside(folder: Path) -> list[Path]:
    """What a folder holds, in order; nothing if that can't be read. Hidden files are left out."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__")))
    except OSError:
        return []


def _recognised(path: Path) -> bool:
    try:
        return format_of(path) is not None
    except UserError:
        return False  # a broken dataset.json is not to be recommended

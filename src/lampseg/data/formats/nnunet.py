"""nnU-Net's raw folders (version 2): a file for each channel, imagesTr/CASE_0000.nii.gz and labelsTr/CASE.nii.gz."""

import re
from pathlib import Path
from typing import Any

from lampseg.data.cases import Case, Dataset
from lampseg.data.formats.described import annotated_of, channels_of, checked, classes_of, few, need, read_object
from lampseg.errors import UserError

LOOKS_LIKE = "dataset.json with `file_ending` (nnU-Net)"
ENDINGS = (".nii.gz", ".nii", ".nrrd")

_Entry = tuple[tuple[Path, ...], Path | None]


def found(root: Path) -> bool:
    """Whether a folder has this layout; `file_ending` tells it from MSD's.

    Raises:
        UserError: its dataset.json can't be read.
    """
    source = root / "dataset.json"
    if not source.is_file():
        return False
    tree = read_object(source)
    return "file_ending" in tree or ("training" not in tree and "channel_names" in tree)


def read(root: Path) -> Dataset:
    """Reads `root/dataset.json` and the folders imagesTr, labelsTr, imagesTs and labelsTs (the last two if there).

    Raises:
        UserError: no or broken dataset.json, regions, an `ignore` label, another kind of file, missing folders,
            channels or labels, files without a channel's number, no training case.
    """
    source = root / "dataset.json"
    tree = read_object(source)
    labels = need(source, tree, "labels")
    _refuse_unsupported(source, labels)
    classes = classes_of(source, labels)
    channels = channels_of(source, "channel_names", need(source, tree, "channel_names"))
    ending = need(source, tree, "file_ending")
    if ending not in ENDINGS:
        raise UserError(f"{source}: `file_ending` is {ending!r}; volumes in {', '.join(ENDINGS)} can be read: convert")
    if "dataset" in tree:
        training = _listed(source, tree["dataset"], channels)
    else:
        training = _found(root, "Tr", ending, channels)
    test = _found(root, "Ts", ending, channels) if (root / "imagesTs").is_dir() else {}
    count = tree.get("numTraining", len(training))
    if count != len(training):
        raise UserError(
            f"{source}: `numTraining` is {count!r}, but there are {len(training)} training cases; copy the missing "
            "ones, or correct the number"
        )
    absent = tree.get("not_annotated", {})
    if not isinstance(absent, dict) or not absent.keys() <= training.keys() | test.keys():
        raise UserError(f'{source}: `not_annotated` must be an object of cases, such as {{"CASE": ["liver"]}}')

    def cases(entries: dict[str, _Entry]) -> tuple[Case, ...]:
        return tuple(
            Case(name, images, label, annotated_of(f"{source}: {name}", absent.get(name, []), classes))
            for name, (images, label) in entries.items()
        )

    return checked(
        source,
        Dataset(root, str(tree.get("name", root.name)), classes, cases(training), cases(test), channels),
        empty=f"there is no training case; put CASE_0000{ending} into imagesTr and CASE{ending} into labelsTr",
        unlabelled=f"has no label; add labelsTr/CASE{ending}, or move its images to imagesTs",
    )


def _refuse_unsupported(source: Path, labels: Any) -> None:
    if not isinstance(labels, dict):
        return  # `classes_of` refuses it
    if "ignore" in labels:
        raise UserError(
            f"{source}: `labels` has an `ignore` label, which is not supported (nnU-Net leaves such voxels out of the "
            "loss): remove it if no label map holds it; for organs that nobody drew in a case use `not_annotated`"
        )
    regions = [str(name) for name, value in labels.items() if isinstance(value, list)]
    if regions:
        raise UserError(
            f"{source}: `labels`: {few(regions)} is a region of several values, which is not supported; give each "
            "class one whole number, as the label maps hold them"
        )


def _listed(source: Path, entries: Any, channels: tuple[str, ...]) -> dict[str, _Entry]:
    """Training cases by id from {"CASE": {"images": [PATH, ...], "label": PATH}}, paths relative to the folder."""
    if not isinstance(entries, dict):
        raise UserError(f"{source}: `dataset` must be an object of cases, found {type(entries).__name__}")
    found = {}
    for name, entry in entries.items():
        images = entry.get("images") if isinstance(entry, dict) else None
        label = entry.get("label") if isinstance(entry, dict) else None
        if not isinstance(images, list) or not all(isinstance(path, str) for path in images) or len(images) < 1:
            raise UserError(f'{source}: dataset.{name}: expected {{"images": [PATH, ...], "label": PATH}}')
        if not isinstance(label, str | None):
            raise UserError(f"{source}: dataset.{name}: `label` must be a path, found {label!r}")
        if len(images) != len(channels):
            raise UserError(
                f"{source}: dataset.{name}: {len(images)} images for the {len(channels)} channels "
                f"{', '.join(channels)}; give one for each, in that order"
            )
        label_path = None if label is None else source.parent / label
        found[name] = (tuple(source.parent / path for path in images), label_path)
    return found


def _found(root: Path, part: str, ending: str, channels: tuple[str, ...]) -> dict[str, _Entry]:
    """Cases by id from the names in imagesTr or imagesTs."""
    folder, labels = root / f"images{part}", root / f"labels{part}"
    if not folder.is_dir():
        raise UserError(f"{root}: has no folder images{part}; a raw folder of nnU-Net holds imagesTr and labelsTr")
    files = sorted(p for p in folder.iterdir() if p.name.endswith(ending) and not p.name.startswith("."))
    cases: dict[str, dict[int, Path]] = {}
    for path in files:
        match = re.fullmatch(r"(.+)_(\d{4})", path.name.removesuffix(ending))
        if match is None:
            raise UserError(
                f"{path}: the name does not end in a channel's number; with one channel, call the file "
                f"{path.name.removesuffix(ending)}_0000{ending}"
            )
        cases.setdefault(match[1], {})[int(match[2])] = path
    if not cases and any(folder.iterdir()):
        raise UserError(f"{folder}: holds no file *_0000{ending}; correct `file_ending` in dataset.json")
    found: dict[str, _Entry] = {}
    for name, numbered in cases.items():
        if sorted(numbered) != list(range(len(channels))):
            raise UserError(
                f"{folder}: {name} has the channels {', '.join(f'{n:04d}' for n in sorted(numbered))}, but "
                f"dataset.json names {len(channels)} ({', '.join(channels)}); expected 0000 to {len(channels) - 1:04d}"
            )
        label = labels / f"{name}{ending}"
        images = tuple(numbered[number] for number in sorted(numbered))
        found[name] = (images, label if part == "Tr" or label.is_file() else None)
    return found

"""What `predict` is given, files, folders, lists -> the cases to segment: a name, and the files of its channels."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lampseg.data.dicom.files import header_of, is_dicom, text_of
from lampseg.data.volume import file_id, suffix_of
from lampseg.errors import UserError

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".npy")
_CHANNEL = re.compile(r"(.+)_(\d{4})")
"""nnU-Net's file names: CASE_0000, CASE_0001, ... hold one channel each."""


@dataclass(frozen=True)
class InputCase:
    """An image to segment."""

    name: str
    """The results are called after it."""
    images: tuple[Path, ...]
    """One file (or DICOM folder) that holds all channels, or one file for each."""

    @property
    def output(self) -> str:
        return f"{self.name}.nii.gz"


def case_of(path: Path) -> InputCase:
    """The case of one file, or of a DICOM folder."""
    return InputCase(path.resolve().name if path.is_dir() else file_id(path), (path,))


def cases_of(paths: Sequence[Path], *, channels: int = 1) -> list[InputCase]:
    """The cases in order: files as given, folders by name.

    A folder is that of volumes (hidden files such as AppleDouble's left out), of one DICOM series, or of folders of one
    each; files of a series stand for all of its files in their folder. A `.json` file is an MSD dataset.json: the scans
    that its `test` lists. With several channels the files CASE_0000, CASE_0001, ... of a folder are one case, CASE.

    Args:
        channels: of the network.

    Raises:
        UserError: a path does not exist, a folder or list has no image, or two cases have one name.
    """
    files: list[Path] = []
    series: set[tuple[Path, str | None]] = set()
    several: dict[Path, bool] = {}
    for path in paths:
        if path.is_dir():
            files += _of_folder(path)
        elif path.suffix == ".json" and path.is_file():
            files += _of_list(path, channels)
        elif path.is_file() and not path.name.endswith(SUFFIXES) and is_dicom(path):
            # A series is one image, however many of its files are named.
            folder = path.absolute().parent
            if folder not in several:
                several[folder] = _several_series(folder)
            mine = _series_uid(path) if several[folder] else None
            if (folder, mine) not in series:
                files.append(path.parent if mine is None else path)
            series.add((folder, mine))
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    if not files:
        raise UserError("predict: no image given; name NIfTI files, folders of them, or a dataset.json")
    cases = _grouped(files, channels) if channels > 1 else [case_of(file) for file in files]
    names: dict[str, InputCase] = {}
    for case in cases:
        other = names.setdefault(case.name, case)
        if other is not case:
            raise UserError(
                f"{case.images[0]} and {other.images[0]} would be written to the same {case.output}: predict them apart"
            )
    return cases


def _several_series(folder: Path) -> bool:
    """Whether a folder's DICOM files are of more than one series; files that can't be read are not counted."""
    uids = (_series_uid(path) for path in sorted(folder.iterdir()) if path.is_file() and is_dicom(path))
    return len({uid for uid in uids if uid is not None}) > 1


def _series_uid(path: Path) -> str | None:
    try:
        return text_of(header_of(path), "SeriesInstanceUID")
    except UserError:
        return None  # reading the image will say what is wrong


def check_apart(cases: Iterable[InputCase], out: Path) -> None:
    """Raises UserError if a result in `out` would overwrite an image."""
    for case in cases:
        for image in case.images:
            if image.resolve() == (out / case.output).resolve():
                raise UserError(f"{image}: the prediction would overwrite it; choose another --out")


def _of_folder(folder: Path) -> list[Path]:
    there = sorted(path for path in folder.iterdir() if path.name[0] != ".")
    found = [path for path in there if path.name.endswith(SUFFIXES)]
    if found:
        return found
    if any(path.is_file() and is_dicom(path) for path in there):
        return [folder]
    series = [path for path in there if path.is_dir() and is_dicom(path)]
    if series:
        return series
    raise UserError(
        f"{folder}: there is no .nii or .nii.gz file in this folder, nor another that can be read (.nrrd, .npy, a "
        "DICOM series)"
    )


def _of_list(source: Path, channels: int) -> list[Path]:
    """The scans that a dataset.json's `test` lists, next to it; nnU-Net's lists leave out the channel's number."""
    try:
        tree: Any = json.loads(source.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: cannot be read as JSON ({error}); give a dataset.json, or folders") from error
    listed = tree.get("test") if isinstance(tree, dict) else None
    if not isinstance(listed, list) or not listed:
        raise UserError(f"{source}: its `test` lists no scans; give their folder instead")
    files: list[Path] = []
    for index, entry in enumerate(listed):
        image = entry.get("image") if isinstance(entry, dict) else entry
        several: list[Any] = image if isinstance(image, list) else [image]
        if not several or not all(isinstance(name, str) for name in several):
            raise UserError(f'{source}: test[{index}]: expected a path or {{"image": PATH}}, found {entry!r}')
        for path in (source.parent / name for name in several):
            if path.name.startswith("._"):
                continue
            suffix = suffix_of(path)
            stem = path.name.removesuffix(suffix)
            parts = [path.with_name(f"{stem}_{n:04d}{suffix}") for n in range(channels)]
            files += [path] if path.is_file() or not parts[0].is_file() else parts
    return files


def _grouped(files: Iterable[Path], channels: int) -> list[InputCase]:
    """With channels 0 to C - 1 all there, the files are one case; else each file is one, and may hold all channels."""
    groups: dict[tuple[Path, str], dict[int, Path]] = {}
    order: list[tuple[tuple[Path, str] | None, Path]] = []
    for file in files:
        found = _CHANNEL.fullmatch(file_id(file)) if not file.is_dir() else None
        key = (file.parent, found[1]) if found else None
        order.append((key, file))
        if found and key and int(found[2]) not in groups.setdefault(key, {}):
            groups[key][int(found[2])] = file
    cases = []
    for key, file in order:
        parts = groups[key] if key else {}
        if sorted(parts) != list(range(channels)):
            cases.append(case_of(file))
        elif key and parts[0] == file:
            cases.append(InputCase(key[1], tuple(parts[n] for n in range(channels))))
    return cases

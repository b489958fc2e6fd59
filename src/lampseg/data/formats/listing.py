"""A listing of cases for data in no layout of their own: one CSV or JSON file with images and labels, row by row."""

import csv
from pathlib import Path
from typing import Any

from lampseg.data.cases import Case, Dataset
from lampseg.data.formats.described import annotated_of, channels_of, checked, classes_of, few, need, read_json
from lampseg.data.volume import file_id
from lampseg.errors import UserError

LOOKS_LIKE = "a file *.csv or *.json that lists cases"
SUFFIXES = (".csv", ".json")
COLUMNS = ("id", "image", "label", "split", "not_annotated")
NAMES = "labels.json"
"""Lies beside a CSV listing: names of classes by value, or an object with `labels` and `channel_names`."""

_SPLITS = {"": "training", "train": "training", "training": "training", "validation": "validation", "test": "test"}


def found(root: Path) -> bool:
    """Whether this can be a listing."""
    return root.is_file() and root.suffix in SUFFIXES and root.name != "dataset.json"


def read(source: Path) -> Dataset:
    """Reads a listing; its paths are relative to its own folder.

    Raises:
        UserError: it can't be read, has unknown or missing columns, names unknown splits or organs, leaves labels or
            class names out, lists missing files, or has no training case.
    """
    rows, names = _csv(source) if source.suffix == ".csv" else _json(source)
    labels = need(names[0], names[1], "labels")
    classes = classes_of(names[0], labels)
    cases: dict[str, list[Case]] = {"training": [], "validation": [], "test": []}
    for where, row in rows:
        split, case = _case(source, where, row, classes)
        cases[split].append(case)
    training = (*cases["training"], *cases["validation"])
    first = next(iter((*training, *cases["test"])), None)
    if "channel_names" in names[1]:
        channels = channels_of(names[0], "channel_names", names[1]["channel_names"])
    elif first is None or len(first.images) == 1:
        channels = ("image",)
    else:
        channels = tuple(f"channel {number}" for number in range(len(first.images)))
    for case in (*training, *cases["test"]):
        if len(case.images) not in (1, len(channels)):
            raise UserError(
                f"{source}: {case.id} has {len(case.images)} images for {len(channels)} channels; list one file for "
                "each channel, or one that holds all, and the same channels for every case"
            )
    held_out = tuple(case.id for case in cases["validation"]) or None
    if held_out and not cases["training"]:
        raise UserError(f"{source}: every case is for validation or test; give some the split `train`")
    return checked(
        source,
        Dataset(
            source.parent,
            str(names[1].get("name", source.stem)),
            classes,
            training,
            tuple(cases["test"]),
            channels,
            held_out,
        ),
        empty="lists no training case; give at least one row with image and label",
        unlabelled="has no `label`; add it or give the case the split `test`",
    )


def _csv(source: Path) -> tuple[list[tuple[str, dict[str, Any]]], tuple[Path, dict[str, Any]]]:
    """Rows, each with where it stands, and the object that names the classes with its source."""
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restkey="", skipinitialspace=True, strict=True)
            fields = [str(field).strip() for field in reader.fieldnames or ()]
            reader.fieldnames = fields
            _check_columns(source, fields)
            rows = []
            for row in reader:
                where = f"{source}: line {reader.line_num}"
                if "" in row:
                    raise UserError(f"{where}: more fields than columns ({', '.join(fields)}); quote paths with commas")
                rows.append((where, {key: (value or "").strip() for key, value in row.items()}))
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error}); check the path and its permissions") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not a CSV file in UTF-8 ({error}); correct it there") from error
    beside = source.parent / NAMES
    if not beside.is_file():
        raise UserError(
            f'{source}: the classes have no names; put {{"background": 0, "liver": 1}} or the like into {beside}'
        )
    names = read_json(beside)
    if isinstance(names, dict) and "labels" not in names:
        names = {"labels": names}
    if not isinstance(names, dict):
        raise UserError(f'{beside}: expected an object such as {{"background": 0, "liver": 1}}')
    return [(where, row) for where, row in rows if any(row.values())], (beside, names)


def _json(source: Path) -> tuple[list[tuple[str, dict[str, Any]]], tuple[Path, dict[str, Any]]]:
    tree = read_json(source)
    if not isinstance(tree, dict):
        raise UserError(f"{source}: expected an object with `labels` and `cases`, found {type(tree).__name__}")
    entries = need(source, tree, "cases")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f'{source}: `cases` must be a list of objects such as {{"image": PATH, "label": PATH}}')
    for index, entry in enumerate(entries):
        unknown = [key for key in entry if key not in COLUMNS]
        if unknown:
            raise UserError(f"{source}: cases[{index}]: unknown field {few(unknown)}; there are {', '.join(COLUMNS)}")
    return [(f"{source}: cases[{index}]", entry) for index, entry in enumerate(entries)], (source, tree)


def _check_columns(source: Path, fields: list[str]) -> None:
    unknown = [field for field in fields if field not in COLUMNS]
    if unknown or "image" not in fields or len(set(fields)) < len(fields):
        raise UserError(
            f"{source}: the first line names the columns {', '.join(fields) or 'none'}; expected image and, if wanted, "
            f"{', '.join(column for column in COLUMNS if column != 'image')}, separated by commas, each once"
        )


def _case(source: Path, where: str, row: dict[str, Any], classes: tuple[str, ...]) -> tuple[str, Case]:
    """The split and the case of a row."""
    images = _several(where, "image", row.get("image"))
    if not images:
        raise UserError(f"{where}: `image` is empty; give a path, or several with `;` between them")
    label = row.get("label") or None
    split = row.get("split") or ""
    case_id = row.get("id") or file_id(Path(images[0]))
    for field, value in (("label", label or ""), ("split", split), ("id", case_id)):
        if not isinstance(value, str):
            raise UserError(f"{where}: `{field}` must be text, found {value!r}")
    if split not in _SPLITS:
        raise UserError(f"{where}: `split` is {split!r}; give train, validation or test (empty means train)")
    annotated = annotated_of(where, _several(where, "not_annotated", row.get("not_annotated")), classes)
    paths = tuple(source.parent / image for image in images)
    return _SPLITS[split], Case(case_id, paths, None if label is None else source.parent / label, annotated)


def _several(where: str, field: str, value: Any) -> list[str]:
    """A list, or text with `;` between its entries."""
    entries = [] if value is None else value.split(";") if isinstance(value, str) else value
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise UserError(f"{where}: `{field}` must be text or a list of texts, found {value!r}")
    return [entry.strip() for entry in entries if entry.strip()]

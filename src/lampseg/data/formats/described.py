"""What the descriptions of datasets have in common: a JSON object that names classes, channels and missing organs."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lampseg.data.cases import Case, Dataset
from lampseg.errors import UserError


def read_json(source: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: it is missing, can't be read, or is no JSON.
    """
    try:
        return json.loads(source.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{source}: no such file; data.root must be a folder with dataset.json, imagesTr/ and labelsTr/"
        ) from error
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error}); check the path and its permissions") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not valid JSON ({error}); correct it there") from error


def read_object(source: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object; errors as `read_json`."""
    tree = read_json(source)
    if not isinstance(tree, dict):
        raise UserError(f"{source}: expected an object with `labels` and `training`, found {type(tree).__name__}")
    return tree


def need(source: Path, tree: dict[str, Any], key: str) -> Any:
    """A key's value, which must be there."""
    if key not in tree:
        raise UserError(
            f"{source}: the key `{key}` is missing (there are: {', '.join(tree) or 'none'}); add it, see "
            "docs/reference/data-layout.md"
        )
    return tree[key]


def classes_of(source: Path, labels: Any) -> tuple[str, ...]:
    """Names by label value, from {"0": "background"} (MSD) or {"background": 0} (nnU-Net)."""
    if not isinstance(labels, dict) or not labels:
        raise UserError(f'{source}: `labels` must be an object such as {{"0": "background", "1": "liver"}}')
    if all(str(key).isdecimal() for key in labels):
        pairs = [(int(key), name) for key, name in labels.items()]
    else:
        pairs = []
        for name, value in labels.items():
            if isinstance(value, bool) or not str(value).isdecimal():
                raise UserError(
                    f"{source}: `labels`: {name!r} has the value {value!r}; give each class one whole number "
                    "(regions of several values are not supported)"
                )
            pairs.append((int(value), name))
    values = sorted(value for value, _ in pairs)
    if values != list(range(len(values))):
        raise UserError(f"{source}: `labels` has the values {values}; they must be 0, 1, 2, ... without gaps")
    if not 2 <= len(values) <= 256:
        raise UserError(f"{source}: `labels` names {len(values)} classes; background and 1 to 255 organs are possible")
    names = [str(name) for _, name in sorted(pairs)]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{source}: `labels` names {few(twice)} more than once; give every class its own name")
    return tuple(names)


def channels_of(source: Path, key: str, names: Any) -> tuple[str, ...]:
    """Names of the channels, from {"0": "FLAIR", "1": "T1"} or a list of names."""
    if isinstance(names, list):
        names = {str(index): name for index, name in enumerate(names)}
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f'{source}: `{key}` must be an object such as {{"0": "FLAIR", "1": "T1"}}, found {names!r}')
    numbers = sorted(int(number) if str(number).isdecimal() else -1 for number in names)
    if numbers != list(range(len(names))):
        raise UserError(f"{source}: `{key}` numbers the channels {', '.join(map(str, names))}; they must be 0, 1, ...")
    return tuple(names[number] for number in sorted(names, key=int))


def annotated_of(where: str, absent: Any, classes: tuple[str, ...]) -> tuple[int, ...] | None:
    """Class indices that were drawn, from the names of those that were not; None: all."""
    if not isinstance(absent, list):
        raise UserError(f"{where}: `not_annotated` must be a list of organ names, found {absent!r}")
    unknown = [str(name) for name in absent if name not in classes[1:]]
    if unknown:
        raise UserError(
            f"{where}: `not_annotated` names {few(unknown)}, which `labels` does not; the organs are "
            f"{', '.join(classes[1:])}"
        )
    if not absent:
        return None
    left = tuple(index for index, name in enumerate(classes) if index > 0 and name not in absent)
    if not left:
        raise UserError(f"{where}: no organ is annotated, so the case teaches nothing; remove it from the list")
    return left


def checked(source: Path, dataset: Dataset, *, empty: str, unlabelled: str) -> Dataset:
    """The dataset itself, if there is something to learn from, ids are unique and every file is there.

    Args:
        source: the file or folder to name.
        empty: what to say, and what to do, without a training case.
        unlabelled: what to say of a training case without labels, after its id.

    Raises:
        UserError: one of these does not hold.
    """
    cases = dataset.training + dataset.test
    if not dataset.training:
        raise UserError(f"{source}: {empty}")
    for case in dataset.training:
        if not case.labelled:
            raise UserError(f"{source}: training case {case.id} {unlabelled}")
    twice = [case_id for case_id, count in Counter(case.id for case in cases).items() if count > 1]
    if twice:
        raise UserError(
            f"{source}: {few(twice)} listed more than once (cases are told apart by the image's file name, over "
            "`training` and `test` together); remove or rename the repeats"
        )
    foreign = [case.id for case in cases if case.id != Path(case.id).name]
    if foreign:
        raise UserError(f"{source}: {few(foreign)} can't name a file; leave out slashes")
    missing = [str(path) for case in cases for path in case.files if not path.is_file()]
    if missing:
        raise UserError(
            f"{source}: {len(missing)} listed file(s) missing: {few(missing)}; add or unlist them{_numbered(cases)}"
        )
    return dataset


def _numbered(cases: Iterable[Case]) -> str:
    """A hint for folders of nnU-Net's first version, whose description leaves the channel's number out."""
    for path in (path for case in cases for path in case.images if not path.is_file()):
        name, dot, suffix = path.name.partition(".")
        if path.with_name(f"{name}_0000{dot}{suffix}").is_file():
            return (
                f" ({name}_0000.{suffix} is there: for a folder in nnU-Net's layout, add `file_ending` and "
                "`channel_names` to dataset.json)"
            )
    return ""


def few(names: Iterable[str]) -> str:
    """Up to five names."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

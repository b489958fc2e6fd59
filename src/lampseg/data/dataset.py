"""A folder in the Medical Segmentation Decathlon's (MSD) layout -> the cases it holds."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lampseg.data.volume import file_id
from lampseg.errors import UserError


@dataclass(frozen=True)
class Case:
    """One scan and, if there is one, its label map."""

    id: str
    images: tuple[Path, ...]
    """One file that holds all channels, or one file for each."""
    label: Path | None
    annotated: tuple[int, ...] | None
    """Class indices (from 1) that were drawn in this case; None: all of them."""
    masks: tuple[tuple[int, Path], ...] = ()
    """Class index and the file of its mask, where every organ has a file of its own instead of a label map."""

    @property
    def image(self) -> Path:
        """The first channel's file, after which a prediction is called."""
        return self.images[0]

    @property
    def labelled(self) -> bool:
        """Whether there is anything to learn from, or to evaluate against."""
        return self.label is not None or bool(self.masks)

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the case."""
        labels = () if self.label is None else (self.label,)
        return (*self.images, *labels, *(path for _, path in self.masks))


@dataclass(frozen=True)
class Dataset:
    """The cases of a folder. `classes[i]` names label value i; `classes[0]` is the background."""

    root: Path
    name: str
    classes: tuple[str, ...]
    training: tuple[Case, ...]
    test: tuple[Case, ...]
    channels: tuple[str, ...] = ("image",)
    """Names of the images' channels, in order."""


def read_dataset(root: Path, *, format: str = "auto") -> Dataset:
    """Reads `root/dataset.json` (docs/reference/data-layout.md) and checks that every listed file is there.

    Entries whose file name begins with `._` (left by macOS archives) are skipped.

    Raises:
        UserError: no or broken dataset.json, missing keys, label values with gaps, unknown names, listed files that
            are missing, two cases of one name, no training case.
    """
    root = Path(root)
    if format not in ("auto", "msd"):
        raise UserError(f"data.format: {format!r} is not known; use `auto` or `msd`")
    source = root / "dataset.json"
    tree = _read_json(source)
    classes = _classes(source, _need(source, tree, "labels"))
    name = tree.get("name", root.name)
    training = _cases(source, "training", _need(source, tree, "training"), classes)
    test = _cases(source, "test", tree.get("test", []), classes)
    if not training:
        raise UserError(f"{source}: `training` lists no case; list at least one {{image, label}}")
    for case in training:
        if not case.labelled:
            raise UserError(f"{source}: training case {case.id} has no `label`; add it or move the case to `test`")
    twice = [case_id for case_id, count in Counter(c.id for c in training + test).items() if count > 1]
    if twice:
        raise UserError(
            f"{source}: {_few(twice)} listed more than once (cases are told apart by the image's file name, over "
            "`training` and `test` together); remove or rename the repeats"
        )
    files = [path for case in training + test for path in case.files]
    missing = [str(p) for p in files if not p.is_file()]
    if missing:
        raise UserError(f"{source}: {len(missing)} listed file(s) missing: {_few(missing)}; add or unlist them")
    return Dataset(root, str(name), classes, training, test)


def split_training(dataset: Dataset, *, fraction: float, seed: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Splits the training cases into (training, validation), by `seed` and case ids only.

    Which side a case falls on depends on a hash of its id, so adding a case moves few others. With two cases or
    more, a fraction above 0 gives at least one validation case, and one below or at 1 leaves one to train on.
    """
    assert 0 <= fraction <= 1
    cases = dataset.training
    wanted = round(fraction * len(cases))
    count = min(max(wanted, 1 if fraction > 0 else 0), len(cases) - 1)
    ranked = sorted(cases, key=lambda case: hashlib.sha256(f"{seed}:{case.id}".encode()).digest())
    held_out = {case.id for case in ranked[:count]}
    return tuple(c for c in cases if c.id not in held_out), tuple(c for c in cases if c.id in held_out)


def _read_json(source: Path) -> dict[str, Any]:
    try:
        tree = json.loads(source.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{source}: no such file; data.root must be a folder with dataset.json, imagesTr/ and labelsTr/"
        ) from error
    except OSError as error:
        raise UserError(f"{source}: cannot be read ({error}); check the path and its permissions") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{source}: not valid JSON ({error}); correct it there") from error
    if not isinstance(tree, dict):
        raise UserError(f"{source}: expected an object with `labels` and `training`, found {type(tree).__name__}")
    return tree


def _need(source: Path, tree: dict[str, Any], key: str) -> Any:
    if key not in tree:
        raise UserError(
            f"{source}: the key `{key}` is missing (there are: {', '.join(tree) or 'none'}); add it, see "
            "docs/reference/data-layout.md"
        )
    return tree[key]


def _classes(source: Path, labels: Any) -> tuple[str, ...]:
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
        raise UserError(f"{source}: `labels` names {_few(twice)} more than once; give every class its own name")
    return tuple(names)


def _cases(source: Path, key: str, entries: Any, classes: tuple[str, ...]) -> tuple[Case, ...]:
    if not isinstance(entries, list):
        raise UserError(f"{source}: `{key}` must be a list of cases, found {type(entries).__name__}")
    cases = []
    for index, entry in enumerate(entries):
        where = f"{source}: {key}[{index}]"
        fields = {"image": entry} if isinstance(entry, str) else entry
        if not isinstance(fields, dict) or not isinstance(fields.get("image"), str):
            raise UserError(f'{where}: expected {{"image": PATH, "label": PATH}}, found {entry!r}')
        label = fields.get("label")
        if not isinstance(label, str | None):
            raise UserError(f"{where}: `label` must be a path, found {label!r}")
        image = source.parent / fields["image"]
        if image.name.startswith("._"):
            continue
        annotated = _annotated(where, fields.get("not_annotated", []), classes)
        cases.append(Case(file_id(image), (image,), None if label is None else source.parent / label, annotated))
    return tuple(cases)


def _annotated(where: str, absent: Any, classes: tuple[str, ...]) -> tuple[int, ...] | None:
    if not isinstance(absent, list):
        raise UserError(f"{where}: `not_annotated` must be a list of organ names, found {absent!r}")
    unknown = [str(name) for name in absent if name not in classes[1:]]
    if unknown:
        raise UserError(
            f"{where}: `not_annotated` names {_few(unknown)}, which `labels` does not; the organs are "
            f"{', '.join(classes[1:])}"
        )
    if not absent:
        return None
    left = tuple(index for index, name in enumerate(classes) if index > 0 and name not in absent)
    if not left:
        raise UserError(f"{where}: no organ is annotated, so the case teaches nothing; remove it from the list")
    return left


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

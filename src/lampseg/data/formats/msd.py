"""The layout of the Medical Segmentation Decathlon (MSD), any of its tasks: dataset.json lists images and labels."""

from pathlib import Path
from typing import Any

from lampseg.data.cases import Case, Dataset
from lampseg.data.formats.described import annotated_of, channels_of, checked, classes_of, need, read_object
from lampseg.data.volume import file_id
from lampseg.errors import UserError

LOOKS_LIKE = "dataset.json that lists `training` (MSD)"


def found(root: Path) -> bool:
    """Whether a folder has this layout; nnU-Net's, which looks alike, is to be tried before."""
    return (root / "dataset.json").is_file()


def read(root: Path) -> Dataset:
    """Reads `root/dataset.json`; files that it does not list are of no account.

    Entries whose file name begins with `._` (left by macOS archives) are skipped.

    Raises:
        UserError: no or broken dataset.json, missing keys, label values with gaps, unknown names, listed files that
            are missing, two cases of one name, no training case.
    """
    source = root / "dataset.json"
    tree = read_object(source)
    classes = classes_of(source, need(source, tree, "labels"))
    name = tree.get("name", root.name)
    training = _cases(source, "training", need(source, tree, "training"), classes)
    test = _cases(source, "test", tree.get("test", []), classes)
    key = "channel_names" if "channel_names" in tree else "modality"
    channels = channels_of(source, key, tree[key]) if key in tree else ("image",)
    return checked(
        source,
        Dataset(root, str(name), classes, training, test, channels),
        empty="`training` lists no case; list at least one {image, label}",
        unlabelled="has no `label`; add it or move the case to `test`",
    )


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
        annotated = annotated_of(where, fields.get("not_annotated", []), classes)
        cases.append(Case(file_id(image), (image,), None if label is None else source.parent / label, annotated))
    return tuple(cases)

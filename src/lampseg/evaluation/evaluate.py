"""A folder of predicted label maps against the true ones -> an `Evaluation`, as value, JSON and CSV."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lampseg.data.dataset import Dataset, read_dataset
from lampseg.data.volume import Volume, file_id, read_volume
from lampseg.errors import UserError
from lampseg.evaluation.dice import dice_per_class
from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.tables import write_text

# Of the spacing: what float32 headers and format conversions may lose. An error of the axes grows with every voxel.
_AXES_TOLERANCE, _ORIGIN_TOLERANCE = 1e-3, 1e-2


@dataclass(frozen=True)
class _Truth:
    path: Path
    annotated: tuple[int, ...] | None


def evaluate(predictions: Path, labels: Path, *, out: Path) -> Evaluation:
    """Dice of every prediction against the label of the same name (docs/reference/evaluation.md).

    Args:
        predictions: folder of `<image name>.nii.gz`, integer label maps on their images' grids.
        labels: folder of label NIfTIs (e.g. `labelsTs`), or a dataset's root folder. The `dataset.json` in it or in
            its parent, if there, gives the names of the classes and which organs were not annotated in which case.
        out: folder that gets `evaluation.json` and `evaluation.csv`.

    Raises:
        UserError: no predictions, predictions without a label, another shape or affine than the label's, values that
            are no class, files that cannot be read, or `out` cannot be written.
    """
    found = _predictions(Path(predictions))
    truths, names = _truths(Path(labels))
    unknown = [name for name in found if name not in truths]
    if unknown:
        raise UserError(
            f"{predictions}: no label in {labels} for {_few(unknown)}; predictions are paired with labels by file "
            "name: rename them, or take them out of the folder"
        )
    paired = {name: truths[name] for name in found}
    class_names = names or _numbered(paired)
    cases = {
        name: _case(found[name], truth, classes=len(class_names), named=names is not None)
        for name, truth in paired.items()
    }
    evaluation = Evaluation.from_cases(cases, class_names=class_names, unpredicted=_unpredicted(truths, paired))
    write_text(Path(out) / "evaluation.json", evaluation.to_json())
    write_text(Path(out) / "evaluation.csv", evaluation.to_csv())
    return evaluation


def _nifti_files(folder: Path) -> list[Path]:
    """Hidden files, among them the `._*` that macOS archives leave, are not volumes."""
    return sorted(p for p in folder.iterdir() if p.name.endswith((".nii", ".nii.gz")) and not p.name.startswith("."))


def _predictions(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of predictions; run `lampseg predict --out {folder}` first")
    files = _nifti_files(folder)
    if not files:
        raise UserError(f"{folder}: no predictions (*.nii.gz) in this folder; run `lampseg predict` first")
    found: dict[str, Path] = {}
    for path in files:
        name = file_id(path)
        if name in found:
            raise UserError(f"{path}: the case is also predicted in {found[name].name}; remove one of them")
        found[name] = path
    return found


def _truths(labels: Path) -> tuple[dict[str, _Truth], tuple[str, ...] | None]:
    """Name (of the label file, or of its image) -> truth; and the class names, None without a dataset.json."""
    if not labels.is_dir():
        raise UserError(f"{labels}: no such folder of labels; give e.g. DATASET/labelsTs or the dataset's folder")
    if (labels / "dataset.json").is_file():
        dataset = read_dataset(labels)
        truths = _listed(dataset)
        if not truths:
            raise UserError(f"{labels}: its dataset.json lists no labels to evaluate against")
        return truths, dataset.classes
    files = _nifti_files(labels)
    if not files:
        raise UserError(f"{labels}: no label maps (*.nii.gz) in this folder; give e.g. DATASET/labelsTs")
    truths = {file_id(path): _Truth(path, None) for path in files}
    if not (labels.parent / "dataset.json").is_file():
        return truths, None
    dataset = read_dataset(labels.parent)
    # A test case may be listed with its image only, while its label lies in this folder under the image's name.
    annotated = {case.id: case.annotated for case in (*dataset.training, *dataset.test)}
    truths = {name: _Truth(truth.path, annotated.get(name)) for name, truth in truths.items()}
    here = {name: t for name, t in _listed(dataset).items() if t.path.parent.resolve() == labels.resolve()}
    return {**truths, **here}, dataset.classes


def _listed(dataset: Dataset) -> dict[str, _Truth]:
    """Every labelled case under its label's name and its image's name (they differ in nnU-Net folders)."""
    truths = {}
    for case in (*dataset.training, *dataset.test):
        if case.label is not None:
            truths[file_id(case.label)] = truths[case.id] = _Truth(case.label, case.annotated)
    return truths


def _numbered(paired: Mapping[str, _Truth]) -> tuple[str, ...]:
    """Names for classes of which only the values are known: up to the largest in any label."""
    top = max(int(read_volume(truth.path).array.max()) for truth in paired.values())
    if top < 1:
        folder = next(iter(paired.values())).path.parent
        raise UserError(f"{folder}: no label holds any organ; put a dataset.json beside the folder that names them")
    return ("background", *(f"class {value}" for value in range(1, top + 1)))


def _case(prediction: Path, truth: _Truth, *, classes: int, named: bool) -> tuple[float | None, ...]:
    true, predicted = read_volume(truth.path), read_volume(prediction)
    _check_grid(prediction, predicted, truth.path, true)
    source = "dataset.json names" if named else "the labels hold"
    return dice_per_class(
        _label_map(prediction, predicted, classes=classes, source=source),
        _label_map(truth.path, true, classes=classes, source=source),
        classes=classes,
        annotated=truth.annotated,
    )


def _check_grid(prediction: Path, predicted: Volume, label: Path, true: Volume) -> None:
    if predicted.shape != true.shape:
        raise UserError(
            f"{prediction}: shape {predicted.shape}, but its label {label} has {true.shape}; predict on "
            "the image that was labelled"
        )
    tolerance = np.append(_AXES_TOLERANCE * true.spacing, _ORIGIN_TOLERANCE * true.spacing.max())
    if (np.abs(predicted.affine - true.affine)[:3] > tolerance).any():
        raise UserError(
            f"{prediction}: affine {predicted.affine[:3].round(4).tolist()}, but its label {label} has "
            f"{true.affine[:3].round(4).tolist()}; predict on the image that was labelled, or correct the header"
        )


def _label_map(path: Path, volume: Volume, *, classes: int, source: str) -> NDArray[np.uint8]:
    array = volume.array[0]
    values = np.rint(array)
    bad = (np.abs(array - values) > 1e-3) | (values < 0) | (values >= classes)
    if bad.any():
        few = _few([f"{value:g}" for value in np.unique(array[bad])])
        raise UserError(
            f"{path}: {int(bad.sum())} voxels hold {few}, but {source} the classes 0 to {classes - 1}; give label "
            "maps of these classes, and a dataset.json beside the label folder that names all of them"
        )
    labels: NDArray[np.uint8] = values.astype(np.uint8)
    return labels


def _unpredicted(truths: Mapping[str, _Truth], paired: Mapping[str, _Truth]) -> tuple[str, ...]:
    """Labels that lie beside a scored one but were not scored: a forgotten case must not go unnoticed."""
    scored = {truth.path for truth in paired.values()}
    folders = {path.parent for path in scored}
    left = {truth.path for truth in truths.values()} - scored
    return tuple(sorted(file_id(path) for path in left if path.parent in folders))


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

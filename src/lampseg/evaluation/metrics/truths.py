"""The truths that predictions are scored against: a dataset in any known layout, or a folder of label files."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lampseg.data.case_files import read_truth, truth_affine
from lampseg.data.dataset import Case, Dataset, format_of, read_dataset
from lampseg.data.volume import file_id, spacing_of
from lampseg.errors import UserError
from lampseg.evaluation.metrics.label_maps import LabelMap, read_label_map


@dataclass(frozen=True)
class Truth:
    """A labelled case, and what it belongs to: the cases of one part should all be predicted."""

    case: Case
    part: str

    @property
    def path(self) -> Path:
        """For messages: the label map, or the first organ's mask."""
        return self.case.masks[0][1] if self.case.label is None else self.case.label

    def read(self, *, classes: int, source: str) -> LabelMap:
        """The label map on the image's grid; errors as `read_label_map` and `read_truth`."""
        if self.case.label is not None:
            return read_label_map(self.case.label, classes=classes, source=source)
        affine = truth_affine(self.case)
        return LabelMap(self.path, read_truth(self.case, classes=classes), affine, spacing_of(affine))


def find_truths(labels: Path | Dataset) -> tuple[dict[str, Truth], tuple[str, ...] | None]:
    """Name (of the case, of its image or of its label file) -> truth; and the class names, None if nothing tells them.

    Args:
        labels: a dataset, its folder or listing; or a folder of label NIfTIs, whose parent may be a dataset's.

    Raises:
        UserError: there is nothing labelled.
    """
    if isinstance(labels, Dataset):
        return _listed(labels), labels.classes
    if not labels.exists():
        raise UserError(f"{labels}: no such folder of labels; give e.g. DATASET/labelsTs or the dataset's folder")
    if labels.is_file() or (labels / "dataset.json").is_file() or format_of(labels) is not None:
        dataset = read_dataset(labels)
        truths = _listed(dataset)
        if not truths:
            raise UserError(f"{labels}: its dataset.json lists no labels to evaluate against")
        return truths, dataset.classes
    files = nifti_files(labels)
    if not files:
        raise UserError(f"{labels}: no label maps (*.nii.gz) in this folder; give e.g. DATASET/labelsTs")
    if not (labels.parent / "dataset.json").is_file():
        return {file_id(path): _alone(path, None) for path in files}, None
    dataset = read_dataset(labels.parent)
    # A test case may be listed with its image only, while its label lies in this folder under the image's name.
    annotated = {case.id: case.annotated for case in (*dataset.training, *dataset.test)}
    alone = {file_id(path): _alone(path, annotated.get(file_id(path))) for path in files}
    here = {
        name: Truth(truth.case, "")
        for name, truth in _listed(dataset).items()
        if truth.path.parent.resolve() == labels.resolve()
    }
    return {**alone, **here}, dataset.classes


def nifti_files(folder: Path) -> list[Path]:
    """Hidden files, among them the `._*` that macOS archives leave, are not volumes."""
    return sorted(p for p in folder.iterdir() if p.name.endswith((".nii", ".nii.gz")) and not p.name.startswith("."))


def unpredicted(truths: Mapping[str, Truth], scored: Iterable[Truth]) -> tuple[str, ...]:
    """Labelled cases of a part that was scored, which were not: a forgotten case must not go unnoticed."""
    scored = list(scored)
    paths, parts = {truth.path for truth in scored}, {truth.part for truth in scored}
    left = {t.path: t for t in truths.values() if t.path not in paths and t.part in parts}
    return tuple(sorted(file_id(t.path) if t.case.label is not None else t.case.id for t in left.values()))


def _alone(path: Path, annotated: tuple[int, ...] | None) -> Truth:
    return Truth(Case(file_id(path), (path,), path, annotated), "")


def _listed(dataset: Dataset) -> dict[str, Truth]:
    """Every labelled case under its id, and under its label's name (they differ in nnU-Net folders)."""
    parts = [Truth(case, part) for part in ("training", "test") for case in getattr(dataset, part) if case.labelled]
    by_label = {file_id(truth.case.label): truth for truth in parts if truth.case.label is not None}
    return by_label | {truth.case.id: truth for truth in parts}

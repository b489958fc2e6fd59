"""A folder of predicted label maps against the true ones -> an `Evaluation`, as value, JSON and CSV."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lampseg.data.dataset import Dataset, read_dataset
from lampseg.data.volume import file_id
from lampseg.errors import UserError
from lampseg.evaluation.case_scores import ClassScores, score_case
from lampseg.evaluation.label_maps import check_grid, read_label_map
from lampseg.evaluation.measures import choose_metrics, ordered
from lampseg.evaluation.pool import map_cases
from lampseg.evaluation.score_tables import write_evaluation
from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.tables import check_can_write, few
from lampseg.evaluation.tolerances import DEFAULT_MM, tolerances


@dataclass(frozen=True)
class _Truth:
    path: Path
    annotated: tuple[int, ...] | None


def evaluate(
    predictions: Path,
    labels: Path,
    *,
    out: Path,
    metrics: str | Iterable[str] = "all",
    tolerance: float | str | Iterable[str] = DEFAULT_MM,
    jobs: int = 1,
    done: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Scores every prediction against the label of the same name (docs/reference/evaluation.md).

    Args:
        predictions: folder of `<image name>.nii.gz`, integer label maps on their images' grids.
        labels: folder of label NIfTIs (e.g. `labelsTs`), or a dataset's root folder. The `dataset.json` in it or in
            its parent, if there, gives the names of the classes and which organs were not annotated in which case.
        out: folder that gets `evaluation.json`, `evaluation.csv`, `summary.json` and `summary.csv`.
        metrics: names from `METRICS`, or `all`; Dice is measured always.
        tolerance: of the surface Dice, in mm: a number for all classes, or `NAME=MM` for some (see `tolerances`).
        jobs: processes that score at the same time, each with one case in memory. With more than one, a script of
            yours must guard its start by `if __name__ == "__main__":`.
        done: called after every case with how many are done, and of how many.

    Raises:
        UserError: no predictions, predictions without a label, another shape or affine than the label's, values that
            are no class, files that cannot be read, unknown metrics, tolerances or jobs that are none, or `out`
            cannot be written.
    """
    chosen = ordered({"dice", *choose_metrics(metrics)})
    found = _predictions(Path(predictions))
    truths, names = _truths(Path(labels))
    unknown = [name for name in found if name not in truths]
    if unknown:
        raise UserError(
            f"{predictions}: no label in {labels} for {few(unknown)}; predictions are paired with labels by file "
            "name: rename them, or take them out of the folder"
        )
    paired = {name: truths[name] for name in found}
    class_names = names or _numbered(paired, jobs=jobs)
    limits = tolerances(tolerance, organs=class_names[1:])
    tasks = [
        _Task(found[name], truth, len(class_names), names is not None, chosen, limits) for name, truth in paired.items()
    ]
    check_can_write(Path(out) / "evaluation.json")
    scores = map_cases(_score, tasks, jobs=jobs, done=done)
    evaluation = Evaluation.from_scores(
        dict(zip(paired, scores, strict=True)),
        class_names=class_names,
        unpredicted=_unpredicted(truths, paired),
        tolerance_mm=limits if "nsd" in chosen else (),
    )
    write_evaluation(evaluation, Path(out))
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


def _numbered(paired: Mapping[str, _Truth], *, jobs: int) -> tuple[str, ...]:
    """Names for classes of which only the values are known: up to the largest in any label."""
    top = max(map_cases(_largest, [truth.path for truth in paired.values()], jobs=jobs))
    if top < 1:
        folder = next(iter(paired.values())).path.parent
        raise UserError(f"{folder}: no label holds any organ; put a dataset.json beside the folder that names them")
    return ("background", *(f"class {value}" for value in range(1, top + 1)))


def _largest(path: Path) -> int:
    return int(read_label_map(path, classes=None).labels.max())


@dataclass(frozen=True)
class _Task:
    """What a process needs to score one case."""

    prediction: Path
    truth: _Truth
    classes: int
    named: bool
    metrics: tuple[str, ...]
    tolerance_mm: tuple[float, ...]


def _score(task: _Task) -> tuple[ClassScores, ...]:
    source = "dataset.json names" if task.named else "the labels hold"
    true = read_label_map(task.truth.path, classes=task.classes, source=source)
    predicted = read_label_map(task.prediction, classes=task.classes, source=source)
    check_grid(predicted, true)
    return score_case(
        predicted.labels,
        true.labels,
        classes=task.classes,
        spacing=true.spacing.tolist(),
        metrics=task.metrics,
        tolerance_mm=task.tolerance_mm,
        annotated=task.truth.annotated,
    )


def _unpredicted(truths: Mapping[str, _Truth], paired: Mapping[str, _Truth]) -> tuple[str, ...]:
    """Labels that lie beside a scored one but were not scored: a forgotten case must not go unnoticed."""
    scored = {truth.path for truth in paired.values()}
    folders = {path.parent for path in scored}
    left = {truth.path for truth in truths.values()} - scored
    return tuple(sorted(file_id(path) for path in left if path.parent in folders))

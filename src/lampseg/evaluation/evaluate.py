"""A folder of predicted label maps against the true ones -> an `Evaluation`, as value, JSON and CSV."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from lampseg.data.dataset import Dataset
from lampseg.data.volume import file_id
from lampseg.errors import UserError
from lampseg.evaluation.metrics.case_scores import ClassScores, score_case
from lampseg.evaluation.metrics.label_maps import check_grid, read_label_map
from lampseg.evaluation.metrics.measures import choose_metrics, ordered
from lampseg.evaluation.metrics.tolerances import DEFAULT_MM, tolerances
from lampseg.evaluation.metrics.truths import Truth, find_truths, nifti_files, unpredicted
from lampseg.evaluation.score_tables import write_evaluation
from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.tables import check_can_write, few
from lampseg.pool import map_cases


def evaluate(
    predictions: Path,
    labels: Path | Dataset,
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
        labels: folder of label NIfTIs (e.g. `labelsTs`), or a dataset, or where one in any known layout lies. The
            dataset, or the `dataset.json` in the parent, gives the names of the classes and which organs were not
            annotated in which case.
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
    where = labels.root if isinstance(labels, Dataset) else labels
    truths, names = find_truths(labels if isinstance(labels, Dataset) else Path(labels))
    unknown = [name for name in found if name not in truths]
    if unknown:
        raise UserError(
            f"{predictions}: no label in {where} for {few(unknown)}; predictions are paired with labels by file "
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
        unpredicted=unpredicted(truths, paired.values()),
        tolerance_mm=limits if "nsd" in chosen else (),
    )
    write_evaluation(evaluation, Path(out))
    return evaluation


def _predictions(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of predictions; run `lampseg predict --out {folder}` first")
    files = nifti_files(folder)
    if not files:
        raise UserError(f"{folder}: no predictions (*.nii.gz) in this folder; run `lampseg predict` first")
    found: dict[str, Path] = {}
    for path in files:
        name = file_id(path)
        if name in found:
            raise UserError(f"{path}: the case is also predicted in {found[name].name}; remove one of them")
        found[name] = path
    return found


def _numbered(paired: Mapping[str, Truth], *, jobs: int) -> tuple[str, ...]:
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
    truth: Truth
    classes: int
    named: bool
    metrics: tuple[str, ...]
    tolerance_mm: tuple[float, ...]


def _score(task: _Task) -> tuple[ClassScores, ...]:
    source = "dataset.json names" if task.named else "the labels hold"
    true = task.truth.read(classes=task.classes, source=source)
    predicted = read_label_map(task.prediction, classes=task.classes, source=source)
    check_grid(predicted, true)
    return score_case(
        predicted.labels,
        true.labels,
        classes=task.classes,
        spacing=true.spacing.tolist(),
        metrics=task.metrics,
        tolerance_mm=task.tolerance_mm,
        annotated=task.truth.case.annotated,
    )

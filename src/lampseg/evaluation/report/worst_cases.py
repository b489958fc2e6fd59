"""The report's section of the worst results: slices through the largest error of each."""

from collections.abc import Sequence

from lampseg.errors import UserError
from lampseg.evaluation.report import figures
from lampseg.evaluation.report.case_files import CaseArrays, CaseFiles, read_case
from lampseg.evaluation.report.parts import Part, PicturePart, Section, TablePart, TextPart
from lampseg.evaluation.report.scores import Metric, ReportScores
from lampseg.evaluation.report.slices import SliceView, slice_figure
from lampseg.evaluation.tables import counted, dice_text


def worst_section(
    scores: ReportScores,
    cases: Sequence[CaseFiles],
    *,
    count: int,
    class_names: tuple[str, ...],
    window: tuple[float, float] | None = None,
) -> Section:
    """A table of the `count` lowest Dice, and pictures of those whose image, truth and prediction are known.

    Raises:
        UserError: a file cannot be read, or is not on its image's grid.
    """
    worst = scores.worst(count)
    if not worst:
        return Section("Worst results", [])
    files = {case.name: case for case in cases if case.has_truth and case.prediction is not None}
    others = [metric for metric in scores.metrics if metric.key != "dice"]
    rows = [
        [f"{case}: {organ}", dice_text(dice), *_others(scores, others, case=case, organ=organ)]
        for case, organ, dice in worst
    ]
    header = ["case and organ", "Dice", *(metric.heading for metric in others)]
    note = "Planes go through the slices with most wrong voxels of the organ." if files else ""
    parts: list[Part] = [TablePart(header, rows, note=note)]
    parts += _pictures(worst, files, class_names=class_names, window=window)
    missing = {case for case, _, _ in worst} - files.keys()
    if missing:
        parts.append(TextPart(f"{counted(len(missing), 'case')} without its files: no slices are shown of it."))
    return Section("Worst results", parts)


def _others(scores: ReportScores, metrics: Sequence[Metric], *, case: str, organ: str) -> list[str]:
    return [metric.text(scores.of_case(metric.key, case).get(organ)) for metric in metrics]


def _pictures(
    worst: Sequence[tuple[str, str, float]],
    files: dict[str, CaseFiles],
    *,
    class_names: tuple[str, ...],
    window: tuple[float, float] | None,
) -> list[Part]:
    """In the order of the table; a case that appears again is not read again while it is at hand."""
    parts: list[Part] = []
    read: CaseArrays | None = None
    for case, organ, dice in worst:
        if case not in files:
            continue
        if read is None or read.name != case:
            read = read_case(files[case])
        check_classes(read, class_names)
        title = f"{case}, {organ}: Dice {dice_text(dice)}"
        view = SliceView.from_arrays(
            read, title=title, class_names=class_names, organ=organ, window=window, through="error"
        )
        caption = (
            f"{title}. Three planes through the largest error, close up below. Solid: truth; dashed: prediction. "
            "The patient's right is on the left."
        )
        uri = figures.data_uri(slice_figure(view), kind="png")
        parts.append(PicturePart(uri, caption, f"Contours of truth and prediction of {organ} in {case}."))
    return parts


def check_classes(case: CaseArrays, class_names: Sequence[str]) -> None:
    """Raises UserError if a label map holds a class that has no name."""
    for what, labels in (("label", case.truth), ("prediction", case.prediction)):
        if labels is not None and labels.max() >= len(class_names):
            raise UserError(
                f"{case.name}: its {what} holds class {labels.max()}, but only {len(class_names)} classes are named "
                f"({', '.join(class_names)}); give the folder whose dataset.json names all of them"
            )

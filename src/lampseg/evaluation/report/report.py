"""One self-contained HTML page about a run: nothing is fetched, it opens offline and prints."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lampseg.errors import UserError
from lampseg.evaluation.report import figures
from lampseg.evaluation.report.case_files import CaseFiles, read_case
from lampseg.evaluation.report.comparison import Comparison
from lampseg.evaluation.report.page import render_page
from lampseg.evaluation.report.parts import Part, PicturePart, Section, TablePart, TextPart, picture
from lampseg.evaluation.report.results_section import results_section
from lampseg.evaluation.report.run_folder import RunFolder, read_run
from lampseg.evaluation.report.scores import ReportScores, scores_of
from lampseg.evaluation.report.slices import SliceView, slice_figure
from lampseg.evaluation.report.split_section import split_section
from lampseg.evaluation.report.summary import network_text, summary_paragraph
from lampseg.evaluation.report.viewer import BUDGET, numbered_classes, viewer_case, viewer_section
from lampseg.evaluation.report.worst_cases import worst_section
from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.tables import bytes_text, counted, dice_text, seconds_text, write_text

WORST = 4
"""Pairs of case and organ that are shown, if no other number is wanted."""


def write_report(
    run: Path,
    *,
    comparison: Comparison | None = None,
    slices: Sequence[SliceView] = (),
    evaluation: Evaluation | None = None,
    cases: Sequence[CaseFiles] = (),
    worst: int = WORST,
    viewer: Sequence[str] = (),
    budget: int = BUDGET,
    out: Path | None = None,
) -> Path:
    """Writes `report.html` into the run folder from what the folder holds so far; missing pieces are left out.

    Args:
        run: a run folder (docs/reference/run-folder.md).
        comparison: ways to segment the test cases, shown first.
        slices: cases to show with contours of truth and prediction.
        evaluation: scores to show; None: those of the run's `evaluation/evaluation.json`, if it is there, else of the
            comparison's first row.
        cases: the files of the scored cases; slices of the worst results and the viewer are made from them.
        worst: how many pairs of case and organ with the lowest Dice are shown.
        viewer: names of the `cases` that the interactive viewer gets.
        budget: bytes of the page that a case of the viewer may take.
        out: the page; None: `report.html` in the run folder.

    Returns:
        The path of the page.

    Raises:
        UserError: not a run folder, a file cannot be understood, no such case, or the page cannot be written.
    """
    folder = read_run(run)
    if evaluation is None and folder.evaluation is None and comparison is not None:
        evaluation = comparison.rows[0].evaluation
    if evaluation is not None:
        folder = replace(folder, evaluation=evaluation, scores=scores_of(evaluation))
    scores = folder.scores
    return write_text(
        Path(run) / "report.html" if out is None else Path(out),
        render_page(
            title=f"{Path(run).resolve().name}: {network_text(folder)}",
            summary=summary_paragraph(folder, comparison=comparison),
            sections=[
                results_section(folder.evaluation, folder.scores, comparison),
                _worst(folder, scores, cases, count=worst),
                _viewer(folder, scores, cases, names=viewer, budget=budget),
                Section("Slices", [part for view in slices for part in _slices(view)]),
                _training(folder),
                split_section(folder),
                Section("Configuration", [TextPart(folder.config_text, "code")] if folder.config_text else []),
                _environment(folder),
            ],
        ),
    )


def _worst(run: RunFolder, scores: ReportScores | None, cases: Sequence[CaseFiles], *, count: int) -> Section:
    if scores is None or count < 1:
        return Section("Worst results", [])
    return worst_section(scores, cases, count=count, class_names=("background", *scores.organs), window=run.window)


def _viewer(
    run: RunFolder, scores: ReportScores | None, cases: Sequence[CaseFiles], *, names: Sequence[str], budget: int
) -> Section:
    files = {case.name: case for case in cases}
    unknown = [name for name in names if name not in files]
    if unknown:
        raise UserError(f"viewer: there is no case {unknown[0]}; there are {', '.join(files) or 'none'}")
    organs = () if scores is None else scores.organs
    packed = []
    for name in dict.fromkeys(names):
        case = read_case(files[name])
        classes = ("background", *organs) if organs else numbered_classes(case)
        packed.append(viewer_case(case, class_names=classes, window=run.window, scores=scores, budget=budget))
    return viewer_section(packed)


def _training(run: RunFolder) -> Section:
    parts: list[Part] = []
    if run.steps:
        parts.append(
            picture(
                figures.training_curves(run),
                "Loss of every optimizer step and, where there was a validation, its Dice. "
                "Bands are the stages of the curriculum with their patch.",
                alt="Loss and validation Dice against the optimizer step; the table below sums them up.",
            )
        )
        parts.append(_stage_table(run))
    if run.validations:
        parts += [TextPart("Validation", "heading"), _validation_table(run)]
    if run.unreadable_lines:
        parts.append(TextPart(f"{counted(run.unreadable_lines, 'unreadable line')} of metrics.jsonl left out."))
    return Section("Training", parts)


def _stage_table(run: RunFolder) -> TablePart:
    rows = []
    for stage in sorted({step.stage for step in run.steps}):
        steps = [step for step in run.steps if step.stage == stage]
        totals = run.totals(stage)
        last = [step.loss for step in steps[-10:]]
        rows.append(
            [
                f"{stage + 1}: {run.patch_text(stage)}",
                str(totals.steps),
                f"{steps[0].loss:.4f}",
                f"{sum(last) / len(last):.4f}",
                seconds_text(totals.seconds_per_step),
                bytes_text(max(totals.tensor_bytes or totals.peak_bytes, default=None)),
            ]
        )
    header = ["stage", "steps", "first loss", "loss, last 10", "median step", "measured peak, one device"]
    return TablePart(header, rows)


def _validation_table(run: RunFolder) -> TablePart:
    """The last validation of each curriculum stage, and the selected one."""
    shown = {v.stage: v for v in run.validations}
    chosen = {v.step: v for v in [*shown.values(), *([run.best] if run.best else [])]}
    organs = list(dict.fromkeys(name for v in run.validations for name in v.dice))
    rows, best = [], set()
    for i, step in enumerate(sorted(chosen)):
        validation = chosen[step]
        selected = run.best is not None and step == run.best.step
        if selected:
            best |= {(i, column) for column in range(len(organs) + 2)}
        dice = [dice_text(validation.dice.get(name)) for name in organs]
        rows.append([f"step {step}{' (selected)' if selected else ''}", *dice, dice_text(validation.score)])
    note = "Dice of the last validation of each stage and of the selected one."
    return TablePart(["validation", *organs, "mean"], rows, best=frozenset(best), note=note)


def _slices(view: SliceView) -> list[Part]:
    organ = view.class_names[view.shown_class]
    caption = (
        f"{view.title}: three planes through {organ}, close up below. Solid: truth; dashed: prediction. "
        "The patient's right is on the left."
    )
    uri = figures.data_uri(slice_figure(view), kind="png")
    return [PicturePart(uri, caption, f"Contours of truth and prediction around {organ}.")]


def _environment(run: RunFolder) -> Section:
    """As the run recorded it; of an older run that did not, that of now."""
    from lampseg.commands.run_folder import environment  # seldom needed, and it imports MONAI

    if run.environment:
        note = "As recorded when the run began."
    else:
        note = "The run recorded none: this is where the report was made."
    rows = [[name, value] for name, value in (run.environment or environment()).items()]
    return Section("Environment", [TablePart(["what", "value"], rows, note=note, sortable=False)])

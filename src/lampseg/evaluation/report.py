"""One self-contained HTML page about a run: nothing is fetched, it opens offline and prints."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from lampseg.evaluation import figures
from lampseg.evaluation.comparison import Comparison
from lampseg.evaluation.parts import Part, PicturePart, Section, TablePart, TextPart, picture
from lampseg.evaluation.run_folder import RunFolder, read_run
from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.slices import SliceView, slice_figure
from lampseg.evaluation.split_section import split_section
from lampseg.evaluation.summary import network_text, summary_paragraph
from lampseg.evaluation.tables import bytes_text, counted, dice_text, seconds_text, write_text


def write_report(run: Path, *, comparison: Comparison | None = None, slices: Sequence[SliceView] = ()) -> Path:
    """Writes `report.html` into the run folder from what the folder holds so far; missing pieces are left out.

    Args:
        run: a run folder (docs/reference/run-folder.md).
        comparison: ways to segment the test cases, shown first.
        slices: cases to show with contours of truth and prediction.

    Returns:
        The path of the page.

    Raises:
        UserError: not a run folder, a file in it cannot be understood, or the page cannot be written.
    """
    folder = read_run(run)
    sections = [
        _results(folder, comparison),
        _training(folder),
        split_section(folder),
        Section("Slices", [part for view in slices for part in _slices(view)]),
        Section("Configuration", [TextPart(folder.config_text, "code")] if folder.config_text else []),
        _environment(folder),
    ]
    page = _template().render(
        title=f"{Path(run).resolve().name}: {network_text(folder)}",
        summary=summary_paragraph(folder, comparison=comparison),
        sections=[section for section in sections if section.parts],
    )
    return write_text(Path(run) / "report.html", page)


def render_page(*, title: str, summary: str, sections: Sequence[Section]) -> str:
    """One self-contained HTML page; sections without parts are left out."""
    return _template().render(title=title, summary=summary, sections=[each for each in sections if each.parts])


def _template() -> jinja2.Template:
    # Names of cases, organs and modules come from files: everything is escaped.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("lampseg.evaluation"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _results(run: RunFolder, comparison: Comparison | None) -> Section:
    parts: list[Part] = []
    if comparison is not None:
        header, rows, footer = comparison.text_rows()
        note = f"{comparison.note()} Bold: the highest Dice of the row."
        parts += [
            TablePart(header, rows, footer=footer, best=comparison.best(), note=note),
            picture(
                figures.dice_bars(comparison),
                "Mean Dice of each organ; dots are the single cases.",
                alt="Bars of Dice by organ and method; the values are in the table above.",
            ),
            picture(
                figures.dice_against_seconds(comparison),
                "Average Dice against the time to segment one volume: better is up and left.",
                alt="Average Dice against seconds per volume; the values are in the table above.",
            ),
        ]
    if run.evaluation is not None:
        parts += [TextPart("Evaluated cases", "heading"), _evaluation(run.evaluation)]
    return Section("Results", parts)


def _evaluation(evaluation: Evaluation) -> TablePart:
    rows, footer = evaluation.case_rows()
    return TablePart(["case", *evaluation.organs, "average"], rows, footer=footer, note=evaluation.note())


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
    rows = [[name, value] for name, value in run.environment.items()]
    return Section("Environment", [TablePart(["what", "value"], rows)] if rows else [])

"""The page of a study: the paper's tables filled, Figure 1, and the appendix's schedules."""

from collections.abc import Sequence
from pathlib import Path

from lampseg.commands.run_folder import environment
from lampseg.data import Dataset
from lampseg.evaluation.report.page import render_page
from lampseg.evaluation.report.parts import Part, Section, TablePart, TextPart, picture
from lampseg.evaluation.tables import write_text
from lampseg.experiments.definition import Study
from lampseg.experiments.figures import dice_against_seconds
from lampseg.experiments.results import Filled, Result
from lampseg.experiments.schedules import CONVENTIONAL, PARALLEL, drawings, schedule_picture
from lampseg.experiments.trends import trends

ON_TEST = (
    "For each organ the best weights on the test set, as the original code chooses them. The average may belong to no "
    "single model, and the test set has chosen it: not a result, but what the paper's figures may be to compare with."
)


def write_page(
    study: Study,
    dataset: Dataset,
    results: Sequence[Result],
    tables: Sequence[Filled],
    *,
    on_test: Sequence[Filled],
    out: Path,
    scale: str,
) -> Path:
    """Writes `out/report.html`.

    Raises:
        UserError: it can't be written.
    """
    done = sum(result.evaluation is not None for result in results)
    scored = next((len(result.evaluation.cases) for result in results if result.evaluation is not None), 0)
    summary = (
        f"{done} of {len(results)} rows done, on {dataset.name}: {len(dataset.training)} training cases, {scored} test "
        "cases. Of every row one model, chosen on a validation split of the training cases."
    )
    if scale != "full":
        summary += f" Scale {scale}: smaller networks and inputs under the paper's names; the figures are not its."
    sections = [
        Section("Tables", [table.part() for table in tables]),
        Section("Does Dice rise with the input and with the network?", [TextPart(line) for line in trends(results)]),
        Section("Selected on the test set", [TextPart(ON_TEST), *(t.part() for t in on_test)] if on_test else []),
        Section("Figure 1", _figure_1(study, results)),
        Section("Appendix: schedules", _schedules()),
        Section("Environment", [TablePart(["what", "value"], [[k, v] for k, v in environment().items()])]),
    ]
    page = render_page(title=f"The paper's experiments: {study.title}", summary=summary, sections=sections)
    return write_text(out / "report.html", page)


def _figure_1(study: Study, results: Sequence[Result]) -> list[Part]:
    if not any(result.evaluation is not None and result.seconds for result in results):
        return []
    return [
        picture(
            dice_against_seconds(study, results),
            "Average Dice against the time to segment one test image: better is up and left.",
            alt="Average Dice against seconds; the values are in the tables above.",
        )
    ]


def _schedules() -> list[Part]:
    slow, fast = CONVENTIONAL.interval, PARALLEL.interval
    text = (
        f"With three devices the conventional U-Net does a batch every {slow:.3g} units, the parallel one every "
        f"{fast:.3g}: {1 / slow:.3g} t and {1 / fast:.3g} t batches in a device time of t, as the paper says. What has "
        "to be assumed for it is in docs/concepts/schedules-of-the-paper.md."
    )
    parts: list[Part] = [TextPart(text)]
    for drawing in drawings():
        parts.append(picture(schedule_picture(drawing), drawing.title, alt=f"{drawing.title}: device against time."))
    return parts

"""The report's section on results: ways compared, Dice against seconds, and the scores of every organ and case."""

from lampseg.evaluation.report import figures
from lampseg.evaluation.report.boxplots import box_plot
from lampseg.evaluation.report.comparison import Comparison
from lampseg.evaluation.report.parts import FoldPart, Part, PicturePart, Section, TablePart, TextPart, picture
from lampseg.evaluation.report.scores import Metric, ReportScores, scores_of
from lampseg.evaluation.scores import Evaluation

_ROWS = 30
"""A longer table of cases is folded away."""


def results_section(
    evaluation: Evaluation | None, scores: ReportScores | None, comparison: Comparison | None
) -> Section:
    """First the comparison, if there is one, then the evaluation, metric by metric; empty without either."""
    parts: list[Part] = []
    label = ""
    if comparison is not None:
        parts += _comparison(comparison)
        label = next((row.label for row in comparison.rows if row.evaluation == evaluation), "")
    if evaluation is not None and scores is not None:
        dice, *others = scores.metrics
        parts.append(TextPart(f"Evaluated cases: {label}" if label else "Evaluated cases", "heading"))
        if others:
            parts.append(_overview(scores))
        parts += _dice(evaluation, scores, dice, with_boxes=not label)  # else the comparison's boxes show it already
        parts += [FoldPart(f"{metric.heading} of every organ and case", _metric(scores, metric)) for metric in others]
    return Section("Results", parts)


def _comparison(comparison: Comparison) -> list[Part]:
    header, rows, footer = comparison.text_rows()
    note = f"{comparison.note()} Bold: the highest Dice of the row."
    groups = [(row.label, scores_of(row.evaluation)) for row in comparison.rows]
    return [
        TablePart(header, rows, footer=footer, best=comparison.best(), note=note),
        picture(
            figures.dice_against_seconds(comparison),
            "Average Dice against the time to segment one volume, as in Figure 1 of the paper: better is up and left.",
            alt="Average Dice against seconds per volume; the values are in the table above.",
        ),
        picture(
            box_plot(groups, groups[0][1].metrics[0]),
            "Dice of every case, organ by organ: median, quartiles, whiskers to 1.5 times their distance; "
            "dots are the single cases.",
            alt="Box plots of Dice by organ and method; the means are in the table above.",
        ),
    ]


def _overview(scores: ReportScores) -> TablePart:
    """All metrics side by side, of every organ the mean."""
    metrics = scores.metrics
    rows = [[organ, *(m.text(scores.mean(m.key, organ)) for m in metrics)] for organ in scores.organs]
    return TablePart(
        ["organ", *(m.heading for m in metrics)], rows, note="Means over the cases for which there is a value."
    )


def _dice(evaluation: Evaluation, scores: ReportScores, metric: Metric, *, with_boxes: bool) -> list[Part]:
    rows, footer = evaluation.case_rows()
    cases = TablePart(["case", *scores.organs, "average"], rows, footer=footer, note=evaluation.note())
    return [
        _summary(scores, metric),
        *([_boxes(scores, metric)] if with_boxes else []),
        cases if len(rows) <= _ROWS else FoldPart(f"Dice of all {len(rows)} cases", [cases]),
    ]


def _metric(scores: ReportScores, metric: Metric) -> list[Part]:
    rows = [[case, *map(metric.text, values)] for case, values in scores.values[metric.key].items()]
    return [_summary(scores, metric), _boxes(scores, metric), TablePart(["case", *scores.organs], rows)]


def _summary(scores: ReportScores, metric: Metric) -> TablePart:
    better = {True: " Higher is better.", False: " Lower is better.", None: ""}[metric.higher_is_better]
    return TablePart(
        ["organ", "mean", "95 % interval", "sd", "median", "lowest", "highest", "cases"],
        scores.summary_rows(metric),
        note=f"{metric.heading} of every organ over the cases for which there is a value.{better} "
        "The interval is that of the mean, by the bootstrap over cases.",
    )


def _boxes(scores: ReportScores, metric: Metric) -> PicturePart:
    return picture(
        box_plot([("", scores)], metric),
        f"{metric.heading} of every case, organ by organ: median, quartiles, whiskers to 1.5 times their distance; "
        "dots are the single cases.",
        alt=f"Box plots of {metric.heading} by organ; the values are in the tables.",
    )

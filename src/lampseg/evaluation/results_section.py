"""The report's section on results: ways compared, Dice against seconds, and the scores of every organ and case."""

from lampseg.evaluation import figures
from lampseg.evaluation.boxplots import box_plot
from lampseg.evaluation.case_scores import CaseScores, Metric, scores_of
from lampseg.evaluation.comparison import Comparison
from lampseg.evaluation.parts import Part, Section, TablePart, TextPart, picture
from lampseg.evaluation.scores import Evaluation

_ROWS = 30
"""A longer table of cases is folded away."""


def results_section(evaluation: Evaluation | None, scores: CaseScores | None, comparison: Comparison | None) -> Section:
    """First the comparison, if there is one, then the evaluation, metric by metric; empty without either."""
    parts: list[Part] = []
    label = ""
    if comparison is not None:
        parts += _comparison(comparison)
        label = next((row.label for row in comparison.rows if row.evaluation == evaluation), "")
    if evaluation is not None and scores is not None:
        for metric in scores.metrics:
            parts += _metric(evaluation, scores, metric, label=label)
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


def _metric(evaluation: Evaluation, scores: CaseScores, metric: Metric, *, label: str) -> list[Part]:
    """Summary by organ, box plot, and every case; `label` is the row of the comparison that these scores are of."""
    cases = scores.values[metric.key]
    dice = metric.key == "dice"
    if dice:
        rows, footer = evaluation.case_rows()
        table = TablePart(
            ["case", *scores.organs, "average"],
            rows,
            footer=footer,
            note=evaluation.note(),
            folded=f"All {len(cases)} cases" if len(cases) > _ROWS else "",
        )
    else:
        rows = [[case, *map(metric.text, values)] for case, values in cases.items()]
        table = TablePart(["case", *scores.organs], rows, folded=f"{metric.heading} of all {len(cases)} cases")
    better = {True: " Higher is better.", False: " Lower is better.", None: ""}[metric.higher_is_better]
    parts: list[Part] = [
        TextPart(f"{metric.heading}: {label}" if label else metric.heading, "heading"),
        TablePart(
            ["organ", "mean", "sd", "median", "lowest", "highest", "scored cases"],
            scores.summary_rows(metric),
            note=f"{metric.heading} of every organ over the evaluated cases.{better}",
        ),
    ]
    if not (dice and label):  # the comparison's box plot shows it already
        parts.append(
            picture(
                box_plot([("", scores)], metric),
                f"{metric.heading} of every case, organ by organ: median, quartiles, whiskers to 1.5 times their "
                "distance; dots are the single cases.",
                alt=f"Box plots of {metric.heading} by organ; the values are in the tables.",
            )
        )
    return [*parts, table]

"""Dice of predictions, comparisons of methods, and the report of a run."""

from lampseg.evaluation.comparison import Comparison, ComparisonRow
from lampseg.evaluation.dice import dice_per_class
from lampseg.evaluation.evaluate import evaluate
from lampseg.evaluation.report import write_report
from lampseg.evaluation.scores import CaseDice, Evaluation, OrganDice
from lampseg.evaluation.slices import SliceView
from lampseg.evaluation.split_section import plan_lines
from lampseg.evaluation.summary import summary_paragraph

__all__ = [
    "CaseDice",
    "Comparison",
    "ComparisonRow",
    "Evaluation",
    "OrganDice",
    "SliceView",
    "dice_per_class",
    "evaluate",
    "plan_lines",
    "summary_paragraph",
    "write_report",
]

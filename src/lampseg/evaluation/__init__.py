"""Metrics of predictions, paired tests of two runs, comparisons of methods, and the report of a run."""

from lampseg.evaluation.evaluate import evaluate
from lampseg.evaluation.metrics.case_scores import ClassScores, score_case
from lampseg.evaluation.metrics.dice import dice_per_class
from lampseg.evaluation.metrics.measures import METRICS, Metric
from lampseg.evaluation.report.comparison import Comparison, ComparisonRow
from lampseg.evaluation.report.report import write_report
from lampseg.evaluation.report.slices import SliceView
from lampseg.evaluation.report.split_section import plan_lines
from lampseg.evaluation.report.summary import summary_paragraph
from lampseg.evaluation.score_tables import summary_table, write_evaluation
from lampseg.evaluation.scores import CaseDice, Evaluation, OrganDice
from lampseg.evaluation.statistics.bootstrap import Interval, Summary, bootstrap_interval, summarise
from lampseg.evaluation.statistics.paired import PairedTest, holm, paired_test
from lampseg.evaluation.statistics.pairing import PairedClass, PairedComparison, compare_evaluations
from lampseg.evaluation.statistics.sentence import paired_sentence
from lampseg.evaluation.statistics.tables import comparisons_csv, comparisons_json, paired_table

__all__ = [
    "METRICS",
    "CaseDice",
    "ClassScores",
    "Comparison",
    "ComparisonRow",
    "Evaluation",
    "Interval",
    "Metric",
    "OrganDice",
    "PairedClass",
    "PairedComparison",
    "PairedTest",
    "SliceView",
    "Summary",
    "bootstrap_interval",
    "compare_evaluations",
    "comparisons_csv",
    "comparisons_json",
    "dice_per_class",
    "evaluate",
    "holm",
    "paired_sentence",
    "paired_table",
    "paired_test",
    "plan_lines",
    "score_case",
    "summarise",
    "summary_paragraph",
    "summary_table",
    "write_evaluation",
    "write_report",
]

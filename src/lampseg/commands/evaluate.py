"""`lampseg evaluate`: scores a folder of predictions, with a bar of progress, and shows the summary."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lampseg.evaluation.evaluate import evaluate
from lampseg.evaluation.score_tables import summary_note, summary_table
from lampseg.evaluation.scores import Evaluation


def evaluate_folders(
    predictions: Path, labels: Path, *, out: Path, metrics: str, tolerance: tuple[str, ...], jobs: int
) -> Evaluation:
    """Scores and prints; see `lampseg.evaluation.evaluate` for arguments and errors."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    errors = Console(stderr=True)
    # Not into a file: there a bar leaves an empty line, even before an error.
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as progress:
        bar = progress.add_task("cases", total=None)
        found = evaluate(
            predictions,
            labels,
            out=out,
            metrics=metrics,
            tolerance=tolerance,
            jobs=jobs,
            done=lambda count, total: progress.update(bar, completed=count, total=total),
        )
    console = Console()
    for metric in found.metrics:
        console.print(summary_table(found, metric))
    console.print(summary_note(found), markup=False, highlight=False)
    return found

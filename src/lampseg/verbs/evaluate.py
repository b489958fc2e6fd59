"""The verb `evaluate`."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lampseg.verbs.options import no_overrides


@dataclass(frozen=True)
class Evaluate:
    """Dice per class of predictions against labels; cases without an annotation are left out of its mean."""

    predictions: Path
    """Folder of label files."""
    labels: Path
    """Folder of the true label files (its parent's dataset.json names the classes), or a dataset's root."""
    out: Path
    """Folder for evaluation.json and evaluation.csv."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.evaluation import evaluate

        no_overrides(overrides)
        found = evaluate(self.predictions, self.labels, out=self.out)
        Console().print(found.table())

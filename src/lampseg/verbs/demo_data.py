"""The verb `demo-data`."""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lampseg.verbs.options import no_overrides


@dataclass(frozen=True)
class DemoData:
    """Write the phantom: head-and-neck-like CT volumes with nine organs, in the MSD layout."""

    out: Path
    """Folder to be made."""
    cases: int = 24
    """Training cases."""
    test: int = 6
    """Test cases, with labels."""
    seed: int = 0
    spacing: float = 4.0
    """Of the voxels, in mm."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.data import write_phantom

        no_overrides(overrides)
        dataset = write_phantom(self.out, cases=self.cases, seed=self.seed, test=self.test, spacing=self.spacing)
        text = f"{self.out}: {len(dataset.training)} training and {len(dataset.test)} test cases"
        Console().print(text, highlight=False)

"""Which of a run's models is the one: the best on the validation split, of the run and of each curriculum stage."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Selection:
    """The best validations so far.

    The paper trains on ever larger inputs and reports a row after each: `stage-N-best` is the model of such a row,
    chosen among those of its curriculum stage, `best` the one of the whole run.
    """

    step: int | None = None
    score: float | None = None
    stages: dict[int, tuple[int, float | None]] = field(default_factory=dict)
    """Stage, counted from 0 -> step and score of its best."""

    def offer(self, *, step: int, stage: int, score: float | None) -> tuple[str, ...]:
        """Takes a validated model into account.

        Args:
            score: None: there was no validation split, or no class to score; the last model is the best then.

        Returns:
            What the model now is: `best`, `stage-N-best` (N counts from 1), both, or nothing.
        """
        names = []
        if _better(score, self.score):
            self.step, self.score = step, score
            names.append("best")
        if stage not in self.stages or _better(score, self.stages[stage][1]):
            self.stages[stage] = (step, score)
            names.append(f"stage-{stage + 1}-best")
        return tuple(names)

    def to_json(self) -> dict[str, Any]:
        """For best.json and checkpoints."""
        stages = {
            f"stage-{stage + 1}": {"step": step, "validation": score} for stage, (step, score) in self.stages.items()
        }
        return {"step": self.step, "validation": self.score, "stages": stages}

    @staticmethod
    def from_json(tree: dict[str, Any]) -> "Selection":
        """The other way."""
        stages = {
            int(name.removeprefix("stage-")) - 1: (int(found["step"]), found["validation"])
            for name, found in tree.get("stages", {}).items()
        }
        return Selection(tree["step"], tree["validation"], stages)


def _better(score: float | None, than: float | None) -> bool:
    return score is None or than is None or score > than

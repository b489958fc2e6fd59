"""What a run folder holds, read into plain values for the report; missing pieces are allowed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lampseg.errors import UserError
from lampseg.evaluation.report.scores import ReportScores, scores_from_json
from lampseg.evaluation.report.training_log import StageTotals, Step, Validation, read_metrics, totals
from lampseg.evaluation.scores import Evaluation
from lampseg.partition.plan import VERSION, Plan, plans_from_json


@dataclass(frozen=True)
class RunFolder:
    """Everything the report is made from. Empty or None: the run has not got there."""

    path: Path
    config: Mapping[str, Any]
    config_text: str
    steps: tuple[Step, ...]
    validations: tuple[Validation, ...]
    plans: tuple[Plan, ...]
    """One for each curriculum stage."""
    plan_fault: str
    """Why the plans of the folder are not among these; empty if they are, or there are none."""
    environment: Mapping[str, str]
    best_step: int | None
    evaluation: Evaluation | None
    scores: ReportScores | None
    """All that `evaluation.json` holds of the cases."""
    unreadable_lines: int
    """Lines of metrics.jsonl, other than an unfinished last one, that are not JSON records."""

    @property
    def window(self) -> tuple[float, float] | None:
        """Intensities between which the network saw differences: `data.window` of the configuration."""
        data = self.config.get("data")
        window = data.get("window") if isinstance(data, dict) else None
        if isinstance(window, list | tuple) and len(window) == 2 and all(isinstance(v, int | float) for v in window):
            low, high = float(window[0]), float(window[1])
            return (low, high) if low < high else None
        return None

    @property
    def best(self) -> Validation | None:
        """The validation that selected the model: that of `best.json`, else the first of highest score."""
        for validation in self.validations:
            if validation.step == self.best_step:
                return validation
        scored = [v for v in self.validations if v.score is not None]
        return max(scored, key=lambda v: v.score or 0.0, default=None)

    def totals(self, stage: int) -> StageTotals:
        """What was measured in curriculum stage `stage` (0 = first)."""
        return totals(step for step in self.steps if step.stage == stage)

    def measured(self, stage: int) -> StageTotals:
        """The same, of the steps that ran by the plan that is here: a resumed run may have had another before."""
        plan = self.plans[stage].choices.fingerprint
        return totals(step for step in self.steps if step.stage == stage and step.plan in (plan, ""))

    def patch_text(self, stage: int) -> str:
        """The curriculum stage's patch in words: "64 x 64 x 64", or "whole volumes"."""
        curriculum = self.config.get("curriculum")
        if isinstance(curriculum, list) and stage < len(curriculum) and isinstance(curriculum[stage], dict):
            patch = curriculum[stage].get("patch")
            if patch == "whole":
                return "whole volumes"
            if isinstance(patch, int):
                return " x ".join([str(patch)] * 3)
            if isinstance(patch, list | tuple):
                return " x ".join(map(str, patch))
        shapes = {s.patch for s in self.steps if s.stage == stage}
        return " x ".join(map(str, shapes.pop())) if len(shapes) == 1 else f"stage {stage + 1}"


def read_run(run: Path) -> RunFolder:
    """Reads a run folder (docs/reference/run-folder.md). Every piece may be missing, but not all of them.

    An unfinished last line of `metrics.jsonl` (the run was killed while writing it) is ignored. Where a
    resumed run did steps again, the later line counts.

    Raises:
        UserError: not a run folder, or a file of it that is there cannot be understood.
    """
    run = Path(run)
    if not any((run / name).is_file() for name in ("config.yaml", "metrics.jsonl", "plan.json")):
        raise UserError(
            f"{run}: not a run folder (no config.yaml, metrics.jsonl or plan.json); give that of a training"
        )
    config_text = _text(run / "config.yaml")
    steps, validations, unreadable = read_metrics(_text(run / "metrics.jsonl"))
    best = _json(run / "best.json")
    environment = _json(run / "environment.json")
    plans, plan_fault = _read_plans(run / "plan.json")
    result = run / "evaluation" / "evaluation.json"
    evaluation = Evaluation.from_json(_text(result), source=str(result)) if result.is_file() else None
    return RunFolder(
        path=run,
        config=_read_config(run / "config.yaml", config_text),
        config_text=config_text,
        steps=steps,
        validations=validations,
        plans=plans,
        plan_fault=plan_fault,
        environment={str(k): str(v) for k, v in environment.items()},
        best_step=int(best["step"]) if isinstance(best.get("step"), int | float) else None,
        evaluation=evaluation,
        scores=None if evaluation is None else scores_from_json(_text(result)),
        unreadable_lines=unreadable,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _json(path: Path) -> dict[str, Any]:
    text = _text(path)
    if not text:
        return {}
    try:
        tree = json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); remove it or train again") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(tree).__name__}; remove it or train again")
    return tree


def _read_config(path: Path, text: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    return tree if isinstance(tree, dict) else {}


def _read_plans(path: Path) -> tuple[tuple[Plan, ...], str]:
    """The plans, or why they cannot be shown: a run may be older than this program."""
    tree = _json(path)
    if not tree:
        return (), ""
    if tree.get("version") != VERSION:
        return (), (
            f"The plans of this run cannot be shown: {path.name} has version {tree.get('version')!r}, this program "
            f"reads version {VERSION}. `lampseg plan {path.with_name('config.yaml')}` plans them again."
        )
    try:
        return plans_from_json(json.dumps(tree)), ""
    except UserError as error:
        raise UserError(f"{path}: not a plan file of this version ({error}); remove it or plan again") from error

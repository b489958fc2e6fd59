"""What a run folder holds, read into plain values for the report; missing pieces are allowed."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lampseg.errors import UserError
from lampseg.evaluation.metrics import StageTotals, Step, Validation, read_metrics, totals
from lampseg.evaluation.scores import Evaluation


@dataclass(frozen=True)
class PlanStage:
    """What one device holds by the plan; all in bytes, activations per micro-batch."""

    modules: tuple[str, ...]
    first: int
    """Number of its first operation."""
    last: int
    """Number after its last operation."""
    parameters: int
    parameter_bytes: float
    gradient_bytes: float
    optimizer_bytes: float
    activation_bytes: float
    in_flight: int
    receive_bytes: float
    send_bytes: float
    peak_bytes: float
    time_share: float


@dataclass(frozen=True)
class PlanView:
    """The plan of one curriculum stage, as far as the report shows it (a run may be older than this program)."""

    network: str
    input_shape: tuple[int, ...]
    micro_batches: int
    schedule: str
    recompute: str
    precision: str
    stages: tuple[PlanStage, ...]


@dataclass(frozen=True)
class RunFolder:
    """Everything the report is made from. Empty or None: the run has not got there."""

    path: Path
    config: Mapping[str, Any]
    config_text: str
    steps: tuple[Step, ...]
    validations: tuple[Validation, ...]
    plans: tuple[PlanView, ...]
    environment: Mapping[str, str]
    best_step: int | None
    evaluation: Evaluation | None
    unreadable_lines: int
    """Lines of metrics.jsonl, other than an unfinished last one, that are not JSON records."""

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
    result = run / "evaluation" / "evaluation.json"
    return RunFolder(
        path=run,
        config=_read_config(run / "config.yaml", config_text),
        config_text=config_text,
        steps=steps,
        validations=validations,
        plans=_read_plans(run / "plan.json"),
        environment={str(k): str(v) for k, v in environment.items()},
        best_step=int(best["step"]) if isinstance(best.get("step"), int | float) else None,
        evaluation=Evaluation.from_json(_text(result), source=str(result)) if result.is_file() else None,
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


def _read_plans(path: Path) -> tuple[PlanView, ...]:
    tree = _json(path)
    try:
        return tuple(_plan(plan) for plan in tree.get("plans", ()))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a plan file of this version ({error!r}); remove it or plan again") from error


def _plan(plan: dict[str, Any]) -> PlanView:
    stages = tuple(
        PlanStage(
            modules=tuple(map(str, s.get("modules", ()))),
            first=int(s["first"]),
            last=int(s["last"]),
            parameters=int(s["parameters"]),
            parameter_bytes=float(s["parameter_bytes"]),
            gradient_bytes=float(s["gradient_bytes"]),
            optimizer_bytes=float(s["optimizer_bytes"]),
            activation_bytes=float(s["activation_bytes"]),
            in_flight=int(s["in_flight"]),
            receive_bytes=float(s["receive_bytes"]),
            send_bytes=float(s["send_bytes"]),
            peak_bytes=float(s["peak_bytes"]),
            time_share=float(s["time_share"]),
        )
        for s in plan["stages"]
    )
    return PlanView(
        network=str(plan.get("network", "")),
        input_shape=tuple(int(n) for n in plan["input_shape"]),
        micro_batches=int(plan["micro_batches"]),
        schedule=str(plan.get("schedule", "")),
        recompute=str(plan.get("recompute", "")),
        precision=str(plan.get("precision", "")),
        stages=stages,
    )

"""The lines of a run's `metrics.jsonl` as values: optimizer steps, validations, and what they add up to."""

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WARM_UP = 3
"""Steps of a curriculum stage that are not timed if there are more: shapes are new, tensors are counted."""


@dataclass(frozen=True)
class Step:
    """One optimizer step."""

    step: int
    stage: int
    epoch: int
    loss: float
    seconds: float
    patch: tuple[int, ...]
    peak_memory_bytes: tuple[float, ...]
    """Per rank; empty if not measured."""
    busy_seconds: tuple[float, ...]
    """Per rank, seconds spent computing; empty if not measured."""
    tensor_peak_bytes: tuple[float, ...] = ()
    """Per rank, of the tensors alone; empty if not measured in this step."""
    stage_seconds: tuple[Mapping[int, tuple[float, float]], ...] = ()
    """Per rank, for each pipeline stage it holds: seconds in its forwards and its backwards; empty if not measured."""

    plan: str = ""
    """Fingerprint of the plan's choices; empty if not known."""


@dataclass(frozen=True)
class Validation:
    """One pass over the validation split."""

    step: int
    stage: int
    score: float | None
    """Mean Dice over organs."""
    dice: Mapping[str, float | None]


@dataclass(frozen=True)
class StageTotals:
    """What was measured over the steps of one curriculum stage; times are medians over `timed` steps."""

    steps: int
    timed: int
    """The later steps: not the first, in which shapes are new and the tensors of which were counted."""
    slowed: bool
    """There are no others: these were slowed by counting."""
    seconds_per_step: float | None
    """Wall-clock."""
    peak_bytes: tuple[float, ...]
    """Highest of the process, per rank; empty if not measured."""
    tensor_bytes: tuple[float, ...]
    """Highest of its tensors, per rank; empty if not measured."""
    busy_seconds: tuple[float, ...]
    """Computing, not waiting, per rank; empty if not measured."""
    stage_seconds: tuple[Mapping[int, tuple[float, float]], ...]
    """Per rank, for each pipeline stage it holds: in its forwards, in its backwards; empty if not measured."""


def totals(of: Iterable[Step]) -> StageTotals:
    """Sums up the steps of one curriculum stage."""
    steps = list(of)
    # On the CPU the steps of which the tensors are counted are slow; on CUDA all are counted, and the first are slow.
    later = [s for s in steps if not s.tensor_peak_bytes] or steps[WARM_UP:] or steps
    stages = [s.stage_seconds for s in later if s.stage_seconds]
    # A run resumed on other devices has rows of other lengths: the last ones count.
    stages = [s for s in stages if [list(rank) for rank in s] == [list(rank) for rank in stages[-1]]]
    return StageTotals(
        steps=len(steps),
        timed=len(later),
        slowed=any(s.tensor_peak_bytes and s.busy_seconds for s in later),  # not on CUDA, where counting costs nothing
        seconds_per_step=statistics.median([s.seconds for s in later]) if later else None,
        peak_bytes=_columns(max, [s.peak_memory_bytes for s in steps]),
        tensor_bytes=_columns(max, [s.tensor_peak_bytes for s in steps]),
        busy_seconds=_columns(statistics.median, [s.busy_seconds for s in later]),
        stage_seconds=tuple(
            {
                stage: (
                    statistics.median(step[rank][stage][0] for step in stages),
                    statistics.median(step[rank][stage][1] for step in stages),
                )
                for stage in held
            }
            for rank, held in enumerate(stages[-1] if stages else ())
        ),
    )


def _columns(of: Callable[[Sequence[float]], float], rows: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """One number for each column of the rows that are not empty or 0 and as long as the last of them."""
    rows = [row for row in rows if any(row)]
    return tuple(of(column) for column in zip(*(row for row in rows if len(row) == len(rows[-1]))))


def read_metrics(text: str) -> tuple[tuple[Step, ...], tuple[Validation, ...], int]:
    """Steps and validations in order, and how many lines, other than an unfinished last one, are no records.

    Of two lines for one step the later counts: a resumed run does steps again.
    """
    steps: dict[int, Step] = {}
    validations: dict[int, Validation] = {}
    lines = text.splitlines()
    unreadable = 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "validation" in record:
                validation = _validation(record)
                validations[validation.step] = validation
            else:
                step = _step(record)
                steps[step.step] = step
        except (ValueError, TypeError, KeyError, AttributeError):
            unreadable += number < len(lines)
    return (
        tuple(steps[k] for k in sorted(steps)),
        tuple(validations[k] for k in sorted(validations)),
        unreadable,
    )


def _step(record: dict[str, Any]) -> Step:
    return Step(
        step=int(record["step"]),
        stage=int(record.get("stage", 0)),
        epoch=int(record.get("epoch", 0)),
        loss=float("nan") if record["loss"] is None else float(record["loss"]),
        seconds=float(record.get("seconds") or 0.0),
        patch=tuple(int(n) for n in record.get("patch") or ()),
        peak_memory_bytes=tuple(float(n or 0) for n in record.get("peak_memory_bytes") or ()),
        busy_seconds=tuple(float(n or 0) for n in record.get("busy_seconds") or ()),
        tensor_peak_bytes=tuple(float(n or 0) for n in record.get("tensor_peak_bytes") or ()),
        plan=str(record.get("plan") or ""),
        stage_seconds=tuple(
            {int(stage): (float(forward), float(backward)) for stage, (forward, backward) in rank.items()}
            for rank in record.get("stage_seconds") or ()
        ),
    )


def _validation(record: dict[str, Any]) -> Validation:
    dice = {str(name): _finite(value) for name, value in (record.get("dice") or {}).items()}
    return Validation(int(record["step"]), int(record.get("stage", 0)), _finite(record["validation"]), dice)


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)

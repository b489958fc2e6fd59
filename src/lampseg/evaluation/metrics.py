"""The lines of a run's `metrics.jsonl` as values: optimizer steps, validations, and what they add up to."""

import json
import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any


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
    """What was measured over all steps of one curriculum stage."""

    steps: int
    seconds_per_step: float | None
    """Median, wall-clock."""
    peak_bytes: tuple[float, ...]
    """Highest per rank; empty if not measured."""
    busy_share: tuple[float, ...]
    """Each rank's share of all ranks' computing time, summing to 1; empty if not measured."""


def totals(of: Iterable[Step]) -> StageTotals:
    """Sums up the steps of one curriculum stage."""
    steps = list(of)
    peaks = [s.peak_memory_bytes for s in steps if any(s.peak_memory_bytes)]
    # A run resumed on other devices has rows of other lengths: the last ones count.
    ranks = len(peaks[-1]) if peaks else 0
    busy = [s.busy_seconds for s in steps if sum(s.busy_seconds) > 0]
    workers = len(busy[-1]) if busy else 0
    sums = [sum(column) for column in zip(*(b for b in busy if len(b) == workers))]
    return StageTotals(
        steps=len(steps),
        seconds_per_step=statistics.median([s.seconds for s in steps]) if steps else None,
        peak_bytes=tuple(max(column) for column in zip(*(p for p in peaks if len(p) == ranks))),
        busy_share=tuple(value / sum(sums) for value in sums),
    )


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
    )


def _validation(record: dict[str, Any]) -> Validation:
    dice = {str(name): _finite(value) for name, value in (record.get("dice") or {}).items()}
    return Validation(int(record["step"]), int(record.get("stage", 0)), _finite(record["validation"]), dice)


def _finite(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)

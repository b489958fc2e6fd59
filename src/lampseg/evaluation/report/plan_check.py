"""A plan beside what was measured: memory and time of each device, of the worst of its replicas, and of a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lampseg.evaluation.report.training_log import StageTotals
from lampseg.evaluation.tables import bytes_text, seconds_text
from lampseg.partition.plan import Plan


@dataclass(frozen=True)
class PlanCheck:
    """One curriculum stage: what its plan predicted and what its steps took.

    Measured values are None where there are not as many ranks as the plan has: not measured, or the run was resumed
    on other devices.
    """

    plan: Plan
    measured: StageTotals

    @property
    def tensor_bytes(self) -> tuple[float | None, ...]:
        """Measured peak of the tensors on each device."""
        return self._by_device(self.measured.tensor_bytes)

    @property
    def busy_seconds(self) -> tuple[float | None, ...]:
        """Measured computing time of each device in a step."""
        return self._by_device(self.measured.busy_seconds)

    @property
    def stage_seconds(self) -> tuple[tuple[float, float] | None, ...]:
        """Measured seconds of each pipeline stage in a step: in its forwards, in its backwards."""
        ranks = self.measured.stage_seconds
        if len(ranks) != self._ranks or {s for rank in ranks for s in rank} != set(range(len(self.plan.stages))):
            return (None,) * len(self.plan.stages)
        return tuple(max(rank[s] for rank in ranks if s in rank) for s in range(len(self.plan.stages)))

    def predicted_seconds(self, stage: int) -> tuple[float, float]:
        """Of a pipeline stage in a step: in its forwards, in its backwards."""
        count, planned = self.plan.choices.share, self.plan.stages[stage]
        return count * planned.forward_seconds, count * planned.backward_seconds

    def line(self) -> str:
        """Prediction and measurement of a step and of the fullest device, in one line."""
        predicted = max(load.tensor_bytes for load in self.plan.devices)
        measured = max((n for n in self.tensor_bytes if n is not None), default=None)
        step, took = self.plan.step_seconds, self.measured.seconds_per_step
        slowed = ", slowed by counting its tensors" if self.measured.slowed else ""
        return (
            f"a step {_both(step, took, seconds_text)}{slowed}; tensors of the fullest device "
            f"{_both(predicted, measured, bytes_text)}"
        )

    @property
    def _ranks(self) -> int:
        return self.plan.choices.processes

    def _by_device(self, ranks: Sequence[float]) -> tuple[float | None, ...]:
        devices = self.plan.choices.devices * self.plan.choices.sharing
        if len(ranks) != self._ranks:
            return (None,) * devices
        return tuple(max(ranks[device::devices]) for device in range(devices))


def shares(values: Sequence[float | None]) -> tuple[float | None, ...]:
    """Each value's part of their sum; None if one of them is missing or all are 0."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not sum(known):
        return (None,) * len(values)
    return tuple(value / sum(known) for value in known)


def difference_text(measured: float | None, predicted: float) -> str:
    """By how much the measured value is above the predicted one, in percent of this one."""
    return "-" if measured is None or not predicted else f"{100 * (measured / predicted - 1):+.1f} %"


def _both(predicted: float, measured: float | None, text: Callable[[float | None], str]) -> str:
    if measured is None:
        return f"{text(predicted)} predicted, not measured"
    return f"{text(predicted)} predicted, {text(measured)} measured ({difference_text(measured, predicted)})"

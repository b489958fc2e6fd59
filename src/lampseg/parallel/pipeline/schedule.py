"""Schedules: in which order a stage runs the forwards (F) and backwards (B) of its micro-batches.

GPipe, 3 stages, 4 micro-batches; every stage holds all micro-batches before the first backward:

    stage 0   F0 F1 F2 F3 .  .  .  .  B0 B1 B2 B3
    stage 1   .  F0 F1 F2 F3 .  .  B0 B1 B2 B3
    stage 2   .  .  F0 F1 F2 F3 B0 B1 B2 B3

1F1B: the same bubble, but stage s holds at most (stages - s) micro-batches, whatever their number:

    stage 0   F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
    stage 1   .  F0 F1 .  B0 F2 B1 F3 B2 .  B3
    stage 2   .  .  F0 B0 F1 B1 F2 B2 F3 B3

(with a backward as long as a forward). With M micro-batches and K equal stages at most M / (M + K - 1) of the time is
used; one micro-batch never overlaps with itself.
"""

from typing import Literal, NamedTuple

from lampseg.partition.schedule import Schedule, warm_up


class Action(NamedTuple):
    """One forward or backward of one micro-batch."""

    kind: Literal["forward", "backward"]
    micro_batch: int


def actions(schedule: Schedule, *, stage: int, stages: int, micro_batches: int) -> tuple[Action, ...]:
    """The order of a stage's actions; gradients are accumulated in micro-batch order by every schedule."""
    ahead = warm_up(schedule, stage=stage, stages=stages, micro_batches=micro_batches)
    order = [Action("forward", m) for m in range(ahead)]
    for m in range(micro_batches):
        order.append(Action("backward", m))
        if m + ahead < micro_batches:
            order.append(Action("forward", m + ahead))
    return tuple(order)

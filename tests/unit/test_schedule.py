"""Schedules: every micro-batch once forward and once backward, in an order that neither deadlocks nor hoards."""

import itertools

import pytest

from lampseg.parallel.pipeline import Action, actions
from lampseg.parallel.pipeline import schedule as module
from lampseg.partition.cost import Schedule, in_flight

SCHEDULES: tuple[Schedule, ...] = ("gpipe", "1f1b")
CASES = list(itertools.product(SCHEDULES, (1, 2, 3, 4, 7), (1, 2, 3, 4, 9)))


def timeline(schedule: Schedule, stages: int, count: int) -> list[dict[int, str]]:
    """Runs all stages in step, an action each, when what it needs is there."""
    orders = [list(actions(schedule, stage=k, stages=stages, micro_batches=count)) for k in range(stages)]
    done: set[tuple[int, Action]] = set()
    steps = []
    while any(orders):
        now = []
        for k, order in enumerate(orders):
            if not order:
                continue
            needs = k - 1 if order[0].kind == "forward" else k + 1
            if needs in (-1, stages) or (needs, order[0]) in done:
                now.append((k, order.pop(0)))
        assert now, f"no stage can go on: {orders}"
        done.update(now)
        steps.append({k: f"{action.kind[0].upper()}{action.micro_batch}" for k, action in now})
    return steps


@pytest.mark.parametrize(("schedule", "stages", "count"), CASES)
def test_every_micro_batch_once_each_way(schedule: Schedule, stages: int, count: int) -> None:
    for stage in range(stages):
        order = actions(schedule, stage=stage, stages=stages, micro_batches=count)
        for kind in ("forward", "backward"):
            assert [action.micro_batch for action in order if action.kind == kind] == list(range(count))
        flying = most = 0
        for action in order:
            flying += 1 if action.kind == "forward" else -1
            assert flying >= 0
            most = max(most, flying)
        assert most == in_flight(schedule, stage=stage, stages=stages, micro_batches=count)


@pytest.mark.parametrize(("schedule", "stages", "count"), CASES)
def test_never_deadlocks_and_takes_the_least_time(schedule: Schedule, stages: int, count: int) -> None:
    assert len(timeline(schedule, stages, count)) == 2 * (count + stages - 1)


@pytest.mark.parametrize(("schedule", "title"), [("gpipe", "GPipe, 3 stages"), ("1f1b", "1F1B: the same")])
def test_the_drawing_in_the_docstring(schedule: Schedule, title: str) -> None:
    text = module.__doc__ or ""
    drawn = text[text.index(title) :].split("stage 0", 1)[1].split("\n\n")[0]
    rows = [row.split() for row in ("stage 0" + drawn).splitlines()]
    steps = timeline(schedule, 3, 4)
    for row in rows:
        stage, cells = int(row[1]), row[2:]
        assert [cell.strip(".") for cell in cells] == [step.get(stage, "") for step in steps][: len(cells)]
        assert not any(stage in step for step in steps[len(cells) :])

"""Schedules: every micro-batch once forward and once backward through every stage, in an order that never deadlocks."""

import itertools
import random
from collections.abc import Iterator

import pytest

from lampseg.errors import UserError
from lampseg.partition import schedule as module
from lampseg.partition.schedule import (
    SCHEDULES,
    Action,
    Entry,
    Pace,
    Schedule,
    Timetable,
    device_of,
    forward_timetable,
    timetable,
    warm_up,
)

ONE_EACH: tuple[Schedule, ...] = ("gpipe", "1f1b")
CASES = list(itertools.product(SCHEDULES, (1, 2, 3, 4, 7), (1, 2, 3, 4, 9)))


def stages_of(schedule: Schedule, devices: int) -> int:
    return devices if schedule in ONE_EACH else 2 * devices


def random_pace(stages: int, draw: random.Random) -> Pace:
    """Any times, zeros too; only some of the stages read what others make."""
    times = [[draw.choice((0.0, 0.5, draw.random())) for _ in range(stages)] for _ in range(2)]
    pairs = itertools.combinations(range(stages), 2)
    links = tuple((a, b, draw.choice((0.0, draw.random()))) for a, b in pairs if draw.random() < 0.4)
    return Pace(tuple(times[0]), tuple(times[1]), links)


def recomputed(pace: Pace) -> Pace:
    """Every second stage's backward begins with another forward."""
    again = tuple(seconds * (stage % 2) for stage, seconds in enumerate(pace.forward))
    backward = tuple(map(sum, zip(pace.backward, again, strict=True)))
    return Pace(pace.forward, backward, pace.links, again)


def tables(schedule: Schedule, devices: int, count: int) -> Iterator[tuple[Pace, Timetable]]:
    stages = stages_of(schedule, devices)
    uneven, nothing = random_pace(stages, random.Random(1)), Pace((0.0,) * stages, (0.0,) * stages)
    for pace in (Pace.even(stages), uneven, nothing, recomputed(Pace.even(stages)), recomputed(uneven)):
        yield pace, timetable(schedule, devices=devices, micro_batches=count, pace=pace)


def entries_of(table: Timetable) -> dict[Action, Entry]:
    return {entry.action: entry for entries in table.devices for entry in entries}


@pytest.mark.parametrize(("schedule", "devices", "count"), CASES)
def test_every_micro_batch_once_each_way_in_order(schedule: Schedule, devices: int, count: int) -> None:
    stages = stages_of(schedule, devices)
    for _, table in tables(schedule, devices, count):
        for stage in range(stages):
            order = table.order(device_of(schedule, stage, stages=stages, devices=devices))
            for kind in ("forward", "backward"):
                assert [a.micro_batch for a in order if (a.kind, a.stage) == (kind, stage)] == list(range(count))
            if schedule in ONE_EACH:
                assert table.in_flight(stage) == warm_up(schedule, stage=stage, stages=stages, micro_batches=count)


@pytest.mark.parametrize(("schedule", "devices", "count"), CASES)
def test_nothing_starts_before_what_it_needs(schedule: Schedule, devices: int, count: int) -> None:
    """A stage follows the one before it, whether or not it reads anything of it on the planned shape."""
    for pace, table in tables(schedule, devices, count):
        found = entries_of(table)
        places = [device_of(schedule, s, stages=len(pace.forward), devices=devices) for s in range(len(pace.forward))]
        links = {(a, b): seconds if places[a] != places[b] else 0.0 for a, b, seconds in pace.links}
        links |= {(s, s + 1): links.get((s, s + 1), 0.0) for s in range(len(places) - 1)}
        for m in range(count):
            for (a, b), seconds in links.items():
                assert found["forward", b, m].start >= found["forward", a, m].end + seconds
                backward = found["backward", a, m]
                assert backward.fed >= found["backward", b, m].end + seconds
                again = pace.again[a] if pace.again else 0.0
                assert backward.end >= backward.fed + pace.backward[a] - again - 1e-9
            for stage in range(len(places)):
                assert found["backward", stage, m].start >= found["forward", stage, m].end
        for entries in table.devices:
            assert all(before.end <= after.start for before, after in itertools.pairwise(entries))


@pytest.mark.parametrize(("schedule", "devices", "count"), [case for case in CASES if case[0] in ONE_EACH])
def test_even_stages_take_the_least_time(schedule: Schedule, devices: int, count: int) -> None:
    table = timetable(schedule, devices=devices, micro_batches=count, pace=Pace.even(devices))
    assert table.seconds == 3 * (count + devices - 1)


def test_a_second_forward_runs_while_the_gradient_is_on_its_way() -> None:
    """As the runner does it; else the backward would start at 6 and end at 9."""
    pace = Pace((1.0, 0.0), (3.0, 3.0), ((0, 1, 1.0),), (1.0, 0.0))
    table = timetable("gpipe", devices=2, micro_batches=1, pace=pace)
    backward = entries_of(table)["backward", 0, 0]
    assert (backward.start, backward.fed, backward.end) == (5.0, 6.0, 8.0)
    early = Pace((1.0, 0.0), (5.0, 0.5), ((0, 1, 0.0),), (3.0, 0.0))
    table = timetable("gpipe", devices=2, micro_batches=1, pace=early)
    assert entries_of(table)["backward", 0, 0] == Entry(Action("backward", 0, 0), 1.0, 6.0, 1.5)


@pytest.mark.parametrize("schedule", ["interleaved", "v"])
def test_shorter_stages_wait_less(schedule: Schedule) -> None:
    even = timetable("1f1b", devices=4, micro_batches=8, pace=Pace.even(4))
    assert timetable(schedule, devices=4, micro_batches=8, pace=Pace.even(8)).bubble < even.bubble


@pytest.mark.parametrize("schedule", ["interleaved", "v"])
def test_a_limit_bounds_what_is_in_flight(schedule: Schedule) -> None:
    for count in (6, 20):
        table = timetable(schedule, devices=3, micro_batches=count, pace=Pace.even(6), limit=4)
        assert table.in_flight(0) == 4


@pytest.mark.parametrize(("schedule", "devices", "count"), CASES)
def test_predictions_go_through_every_stage(schedule: Schedule, devices: int, count: int) -> None:
    stages = stages_of(schedule, devices)
    for pace in (Pace.even(stages), random_pace(stages, random.Random(2))):
        table = forward_timetable(schedule, devices=devices, micro_batches=count, pace=pace)
        found = entries_of(table)
        assert found.keys() == {("forward", s, m) for s in range(stages) for m in range(count)}
        for (_, stage, m), entry in found.items():
            assert stage == 0 or entry.start >= found["forward", stage - 1, m].end
        for device in range(devices):
            order = table.order(device)
            last = max(action.stage for action in order)
            assert [action.micro_batch for action in order if action.stage == last] == list(range(count))


def test_predictions_keep_all_devices_busy() -> None:
    for schedule in SCHEDULES:
        pace = Pace.even(stages_of(schedule, 2))
        table = forward_timetable(schedule, devices=2, micro_batches=50, pace=pace)
        assert table.bubble < 0.05, schedule


def test_where_stages_lie() -> None:
    assert [device_of("v", s, stages=6, devices=3) for s in range(6)] == [0, 1, 2, 2, 1, 0]
    assert [device_of("interleaved", s, stages=6, devices=2) for s in range(6)] == [0, 1, 0, 1, 0, 1]
    with pytest.raises(UserError, match="schedule v: 3 stages on 2 devices: it needs two stages a device"):
        timetable("v", devices=2, micro_batches=1, pace=Pace.even(3))


@pytest.mark.parametrize(("schedule", "title"), [("gpipe", "GPipe, 3 stages"), ("1f1b", "1F1B: the same")])
def test_the_drawing_in_the_docstring(schedule: Schedule, title: str) -> None:
    text = module.__doc__ or ""
    drawn = text[text.index(title) :].split("device 0", 1)[1].split("\n\n")[0]
    rows = [row.split() for row in ("device 0" + drawn).splitlines()]
    pace = Pace((1.0,) * 3, (1.0,) * 3)
    table = timetable(schedule, devices=3, micro_batches=4, pace=pace)
    for row in rows:
        cells = {
            int(entry.start): f"{entry.action.kind[0].upper()}{entry.action.micro_batch}"
            for entry in table.devices[int(row[1])]
        }
        assert {at: cell for at, cell in enumerate(row[2:]) if cell != "."} == cells

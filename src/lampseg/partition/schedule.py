"""Schedules: on which device each stage lies, and in which order a device runs forwards (F) and backwards (B).

GPipe, 3 stages on 3 devices, 4 micro-batches; every stage holds all micro-batches before the first backward:

    device 0   F0 F1 F2 F3 .  .  .  .  B0 B1 B2 B3
    device 1   .  F0 F1 F2 F3 .  .  B0 B1 B2 B3
    device 2   .  .  F0 F1 F2 F3 B0 B1 B2 B3

1F1B: the same idle time, but stage s holds at most (stages - s) micro-batches, whatever their number:

    device 0   F0 F1 F2 .  .  B0 F3 B1 .  B2 .  B3
    device 1   .  F0 F1 .  B0 F2 B1 F3 B2 .  B3
    device 2   .  .  F0 B0 F1 B1 F2 B2 F3 B3

(with a backward as long as a forward). With M micro-batches and K equal stages at most M / (M + K - 1) of the time is
used; one micro-batch never overlaps with itself.

Interleaved: each device has several shorter stages (s lies on device s mod K), so the pipeline fills sooner; 2 devices,
4 stages (a, b, c, d):

    device 0   a0 a1 c0 c1 ...
    device 1   .  b0 b1 d0 d1 ...

V: two stages a device, and the second ones in reverse, so that the encoder level and the decoder level of a U-Net
lie on one device and the skip between them never travels; 2 devices, 4 stages:

    device 0   a       d          the input and the output are both here
    device 1      b  c

For these two the order is made by list scheduling with the stages' times (`run_listed`): a device that is free takes a
backward if one is ready, else the forward of its latest stage that is ready. Interleaved has a fixed order, too, that
of Megatron-LM (Narayanan et al. 2021, Figure 4); the faster of the two is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from lampseg.errors import UserError

Schedule = Literal["gpipe", "1f1b", "interleaved", "v"]
SCHEDULES: tuple[Schedule, ...] = ("gpipe", "1f1b", "interleaved", "v")


class Action(NamedTuple):
    """One forward or backward of one micro-batch through one stage."""

    kind: Literal["forward", "backward"]
    stage: int
    micro_batch: int


def device_of(schedule: Schedule, stage: int, *, stages: int, devices: int) -> int:
    """The device on which a stage lies."""
    if schedule == "v":
        return min(stage, stages - 1 - stage)
    return stage % devices


def check_stages(schedule: Schedule, *, stages: int, devices: int) -> None:
    """Raises UserError unless the schedule can run so many stages on so many devices."""
    fitting = {
        "gpipe": stages == devices,
        "1f1b": stages == devices,
        "interleaved": stages % devices == 0,
        "v": stages == 2 * devices,
    }
    if not fitting[schedule]:
        needs = {"v": "two stages a device", "interleaved": "as many stages on each device"}
        raise UserError(
            f"schedule {schedule}: {stages} stages on {devices} devices: it needs "
            f"{needs.get(schedule, 'one stage a device')}"
        )


@dataclass(frozen=True)
class Pace:
    """What a timetable is made from: for one micro-batch, in seconds (or any other unit)."""

    forward: tuple[float, ...]
    """Of each stage."""
    backward: tuple[float, ...]
    links: tuple[tuple[int, int, float], ...] = ()
    """(from stage, to stage, seconds): a later stage reads what an earlier one makes. The gradient takes as long."""
    again: tuple[float, ...] = ()
    """Of each stage's backward, the second forward that it begins with: no gradient has to be there for it."""

    @staticmethod
    def even(stages: int) -> "Pace":
        """Equal stages, a backward twice as long as a forward, and no time for messages."""
        return Pace((1.0,) * stages, (2.0,) * stages, tuple((s, s + 1, 0.0) for s in range(stages - 1)))


@dataclass(frozen=True)
class Entry:
    """An action and when it runs."""

    action: Action
    start: float
    end: float
    fed: float
    """When the device is free for it and all that it reads is there. A second forward starts before that."""


@dataclass(frozen=True)
class Timetable:
    """Who does what when: the entries of each device, in order."""

    devices: tuple[tuple[Entry, ...], ...]

    @property
    def seconds(self) -> float:
        """From the first start to the last end."""
        return max((entries[-1].end for entries in self.devices if entries), default=0.0)

    @property
    def bubble(self) -> float:
        """Fraction of the devices' time in which they wait."""
        busy = sum(entry.end - entry.start for entries in self.devices for entry in entries)
        return 1.0 - busy / (len(self.devices) * self.seconds) if self.seconds else 0.0

    def order(self, device: int) -> tuple[Action, ...]:
        return tuple(entry.action for entry in self.devices[device])

    def in_flight(self, stage: int) -> int:
        """How many micro-batches a stage holds between forward and backward, at most."""
        held = most = 0
        for entries in self.devices:
            for entry in entries:
                if entry.action.stage == stage:
                    held += 1 if entry.action.kind == "forward" else -1
                    most = max(most, held)
        return most


def timetable(
    schedule: Schedule,
    *,
    devices: int,
    micro_batches: int,
    pace: Pace,
    limit: int | None = None,
) -> Timetable:
    """The timetable of a schedule; the same on every process that is given the same numbers.

    Every stage runs the forwards, and the backwards, in the order of the micro-batches, so gradients and BatchNorm's
    running statistics add up in the same order by every schedule.

    Args:
        pace: of the stages; their number is that of its entries.
        limit: of micro-batches that have entered and not left the first stage (interleaved and v); None: no limit.

    Raises:
        UserError: the schedule can't run so many stages on so many devices.
    """
    stages = len(pace.forward)
    check_stages(schedule, stages=stages, devices=devices)
    places = [device_of(schedule, stage, stages=stages, devices=devices) for stage in range(stages)]
    if schedule in ("gpipe", "1f1b"):
        made = _Draft(places, devices, micro_batches, pace)
        possible = made.run_orders([_fixed(schedule, stage, stages, micro_batches) for stage in range(stages)])
        assert possible
        return made.timetable()
    listed = _Draft(places, devices, micro_batches, pace)
    listed.run_listed(limit or micro_batches)
    if schedule == "interleaved" and limit is None:
        fixed = _Draft(places, devices, micro_batches, pace)
        orders = [_interleaved(device, devices, stages // devices, micro_batches) for device in range(devices)]
        if fixed.run_orders(orders) and fixed.timetable().seconds <= listed.timetable().seconds:
            return fixed.timetable()
    return listed.timetable()


def forward_timetable(schedule: Schedule, *, devices: int, micro_batches: int, pace: Pace) -> Timetable:
    """The timetable of predictions, which have no backward; the same on every process.

    With equal stages no device waits but at the beginning and the end.
    """
    stages = len(pace.forward)
    check_stages(schedule, stages=stages, devices=devices)
    places = [device_of(schedule, stage, stages=stages, devices=devices) for stage in range(stages)]
    made = _Draft(places, devices, micro_batches, pace)

    def slot(action: Action) -> int:
        """When it runs if all stages are equal: one later than the stage before, and no device has two at once."""
        stage, m = action.stage, action.micro_batch
        if schedule == "v":
            return 2 * m + stage
        return m // devices * stages + m % devices + stage  # so many micro-batches as devices go round together

    actions = [Action("forward", stage, m) for m in range(micro_batches) for stage in range(stages)]
    for action in sorted(actions, key=slot):
        ready = made.ready(action)
        assert ready is not None, "a stage follows those before it"
        made.run(action, ready)
    return made.timetable()


def warm_up(schedule: Schedule, *, stage: int, stages: int, micro_batches: int) -> int:
    """How many forwards stage s of GPipe and 1F1B runs before its first backward: as many are in flight at most."""
    return micro_batches if schedule == "gpipe" else min(micro_batches, stages - stage)


def _fixed(schedule: Schedule, stage: int, stages: int, micro_batches: int) -> list[Action]:
    ahead = warm_up(schedule, stage=stage, stages=stages, micro_batches=micro_batches)
    order = [Action("forward", stage, m) for m in range(ahead)]
    for m in range(micro_batches):
        order.append(Action("backward", stage, m))
        if m + ahead < micro_batches:
            order.append(Action("forward", stage, m + ahead))
    return order


def _interleaved(device: int, devices: int, each: int, micro_batches: int) -> list[Action]:
    """Groups of as many micro-batches as there are devices go through one stage of the device after the other."""
    groups = [range(m, min(m + devices, micro_batches)) for m in range(0, micro_batches, devices)]
    stages = [device + devices * part for part in range(each)]
    forwards = [Action("forward", stage, m) for group in groups for stage in stages for m in group]
    backwards = [Action("backward", stage, m) for group in groups for stage in reversed(stages) for m in group]
    ahead = min(len(forwards), 2 * (devices - device - 1) + (each - 1) * devices + 1)
    order = forwards[:ahead]
    for n, backward in enumerate(backwards):
        order.append(backward)
        order += forwards[ahead + n : ahead + n + 1]
    return order


class _Draft:
    """A timetable in the making."""

    def __init__(self, places: Sequence[int], devices: int, micro_batches: int, pace: Pace) -> None:
        self.places, self.count, self.pace = places, micro_batches, pace
        self.stages = len(places)
        self.entries: list[list[Entry]] = [[] for _ in range(devices)]
        self.ends: dict[Action, float] = {}
        self.free = [0.0] * devices
        self.sources: list[list[tuple[int, float]]] = [[] for _ in places]
        self.targets: list[list[tuple[int, float]]] = [[] for _ in places]
        # A stage follows the one before it even if it reads nothing of it on the planned shape: on another it may.
        linked = {(source, target) for source, target, _ in pace.links}
        chain = [(s, s + 1, 0.0) for s in range(self.stages - 1) if (s, s + 1) not in linked]
        for source, target, seconds in (*pace.links, *chain):
            wait = 0.0 if places[source] == places[target] else seconds
            self.sources[target].append((source, wait))
            self.targets[source].append((target, wait))

    def ready(self, action: Action) -> float | None:
        """When what the action needs is there; None if something that it needs has no time yet."""
        kind, stage, m = action
        needs = self.sources[stage] if kind == "forward" else self.targets[stage]
        times = [0.0]
        if kind == "backward":
            own = self.ends.get(Action("forward", stage, m))
            if own is None:
                return None
            times.append(own)
        for other, wait in needs:
            end = self.ends.get(Action(kind, other, m))
            if end is None:
                return None
            times.append(end + wait)
        return max(times)

    def starts(self, action: Action, ready: float) -> float:
        """When it starts, if what it needs is there at `ready`: a second forward ends then, if the device is free."""
        stage = action.stage
        again = self.pace.again[stage] if action.kind == "backward" and self.pace.again else 0.0
        return max(ready - again, self.free[self.places[stage]])

    def run(self, action: Action, ready: float) -> None:
        lasts = self.pace.forward if action.kind == "forward" else self.pace.backward
        device = self.places[action.stage]
        start, fed = self.starts(action, ready), max(ready, self.free[device])
        end = start + lasts[action.stage]
        self.entries[device].append(Entry(action, start, end, fed))
        self.ends[action] = self.free[device] = end

    def timetable(self) -> Timetable:
        return Timetable(tuple(tuple(entries) for entries in self.entries))

    def run_orders(self, orders: Sequence[Sequence[Action]]) -> bool:
        """Gives given orders their times; one list for each device. False if they wait for each other."""
        at = [0] * len(orders)
        left = sum(map(len, orders))
        while left:
            before = left
            for device, order in enumerate(orders):
                while at[device] < len(order) and (ready := self.ready(order[at[device]])) is not None:
                    self.run(order[at[device]], ready)
                    at[device] += 1
                    left -= 1
            if left == before:
                return False
        return True

    def run_listed(self, limit: int) -> None:
        """List scheduling: always the action that can start first; of several, by `_rank`."""
        following = {(kind, stage): 0 for kind in ("forward", "backward") for stage in range(self.stages)}
        mine = [[s for s, place in enumerate(self.places) if place == d] for d in range(len(self.free))]
        best: list[tuple[float, int, int, Action, float] | None] = [None] * len(self.free)

        def choose(device: int) -> None:
            found = []
            for stage in mine[device]:
                for kind in ("forward", "backward"):
                    m = following[kind, stage]
                    entered = following["forward", 0] - following["backward", 0]
                    if m == self.count or (kind == "forward" and stage == 0 and entered >= limit):
                        continue
                    action = Action(kind, stage, m)  # type: ignore[arg-type]
                    if (ready := self.ready(action)) is not None:
                        found.append((self.starts(action, ready), *_rank(action), action, ready))
            best[device] = min(found, default=None)

        for device in range(len(self.free)):
            choose(device)
        for _ in range(2 * self.stages * self.count):
            possible = [(item, device) for device, item in enumerate(best) if item is not None]
            assert possible, "no stage can go on"
            (*_, action, ready), device = min(possible)
            self.run(action, ready)
            following[action.kind, action.stage] += 1
            others = self.targets if action.kind == "forward" else self.sources
            for changed in {device, *(self.places[other] for other, _ in others[action.stage])}:
                choose(changed)


def _rank(action: Action) -> tuple[int, int]:
    """Backwards first (they free memory), then what has come furthest."""
    return (0, action.stage) if action.kind == "backward" else (1, -action.stage)

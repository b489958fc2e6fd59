"""The search: micro-batches, replicas, schedule and stages are tried; the fastest plan that fits is taken.

Every way is cut by the solver and timed by its timetable. A way whose lower bound (no idle time, no messages) is no
better than the best plan so far is not cut at all.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from lampseg.partition.costed import CostedNetwork
from lampseg.partition.forecast import plan_of
from lampseg.partition.plan import Alternative, Choices, Plan, Recompute, describe_choices
from lampseg.partition.planner import cut_for
from lampseg.partition.schedule import Schedule
from lampseg.units import format_bytes

CLOSE = 0.01
"""Plans whose predicted times differ by less are equally fast: the one that needs less memory is taken."""
MOST_COUNTS = 8
MOST_STAGES_A_DEVICE = 4


@dataclass(frozen=True)
class Options:
    """What the search may choose; a field that is None is open."""

    micro_batches: tuple[int, ...]
    """Numbers of micro-batches of a step that may be chosen."""
    replicas: int | None = None
    schedule: Schedule | None = None
    recompute: Recompute | None = None


@dataclass(frozen=True)
class Way:
    """One way to run, before it is cut."""

    micro_batches: int
    replicas: int
    devices: int
    schedule: Schedule
    stages: int

    @property
    def share(self) -> int:
        return -(-self.micro_batches // self.replicas)


@dataclass(frozen=True)
class Found:
    """The best plan, or the one that comes closest to fitting."""

    plan: Plan
    fits: bool


def counts_to_try(batch: int) -> tuple[int, ...]:
    """Numbers of micro-batches of different size into which a mini-batch can be cut, at most MOST_COUNTS of them."""
    counts = sorted({-(-batch // size) for size in range(1, batch + 1)})
    if len(counts) <= MOST_COUNTS:
        return tuple(counts)
    even = [count for count in counts if batch % count == 0]
    chosen = even if len(even) >= 2 else counts
    step = -(-len(chosen) // MOST_COUNTS)
    return tuple(sorted({*chosen[::-step], chosen[0]}))


def search(
    costed: Callable[[int], CostedNetwork],
    *,
    devices: int,
    options: Options,
    memory: Sequence[float] | None = None,
    on_way: Callable[[], None] = lambda: None,
) -> Found:
    """The fastest plan that fits; if none does, the one whose fullest device lacks least.

    Args:
        costed: gives the network costed for a step cut into so many micro-batches; asked once for each number.
        devices: all of them are used: replicas x devices of a replica.
        memory: bytes of each device; those of replica r are r * devices of a replica, and on.
        on_way: called after each way that was tried.
    """
    models = {count: costed(count) for count in options.micro_batches}
    ways = sorted(_ways(devices, options), key=lambda way: _bound(models[way.micro_batches], way))
    best: Plan | None = None
    closest: tuple[float, Plan] | None = None
    alternatives: list[Alternative] = []
    for way in ways:
        on_way()
        model = models[way.micro_batches]
        if way.stages > model.costs.count or (memory is None and way.devices == 1 < way.stages):
            continue
        bound = _bound(model, way)
        if best is not None and bound > best.step_seconds * (1 + CLOSE):
            text = f"at best {bound / best.step_seconds - 1:+.0%} in time, without any waiting"
            alternatives.append(Alternative(_way_text(way), bound, None, text))
            continue
        limits = _memory_of(way, memory)
        plan = _cut(model, way, options, limits)
        if plan is None:
            assert limits is not None
            plan = _cut_anyway(model, way, options, limits)
            lack = max(load.peak_bytes / limit for load, limit in zip(plan.devices, limits))
            if closest is None or lack < closest[0]:
                closest = lack, plan
            alternatives.append(_too_large(plan))
            continue
        if best is None or _better(plan, best):
            if best is not None:
                alternatives.append(_slower(best, plan))
            best = plan
        else:
            alternatives.append(_slower(plan, best))
    if best is None:
        assert closest is not None
        return Found(replace(closest[1], alternatives=tuple(alternatives)), fits=False)
    alternatives = [_against(best, other) for other in alternatives]
    return Found(replace(best, alternatives=tuple(sorted(alternatives, key=_time_of))), fits=True)


def _ways(devices: int, options: Options) -> Iterable[Way]:
    for count in options.micro_batches:
        for replicas in range(1, devices + 1):
            if devices % replicas or replicas > count or options.replicas not in (None, replicas):
                continue
            each = devices // replicas
            if each == 1:
                yield Way(count, replicas, 1, options.schedule if options.schedule in ("gpipe", "1f1b") else "1f1b", 1)
                if options.recompute != "none" and options.schedule in (None, "interleaved"):
                    # One device may have several stages, too: only the one that runs holds its activations.
                    yield from (Way(count, replicas, 1, "interleaved", n) for n in range(2, MOST_STAGES_A_DEVICE + 1))
                continue
            alone = count <= replicas  # one micro-batch on each replica: no order to choose
            open_ones: tuple[Schedule, ...] = ("1f1b", "v") if alone else ("1f1b", "gpipe", "v", "interleaved")
            for schedule in open_ones if options.schedule is None else (options.schedule,):
                if schedule == "interleaved":
                    yield from (
                        Way(count, replicas, each, schedule, parts * each)
                        for parts in range(2, MOST_STAGES_A_DEVICE + 1)
                    )
                else:
                    yield Way(count, replicas, each, schedule, 2 * each if schedule == "v" else each)


def _bound(model: CostedNetwork, way: Way) -> float:
    """Seconds that a step takes at least."""
    return way.share * float(model.costs.seconds(again=False, at=(0, -1))) / way.devices


def _memory_of(way: Way, memory: Sequence[float] | None) -> tuple[float, ...] | None:
    """Of each device of a replica: the least of its kind."""
    if memory is None:
        return None
    return tuple(min(memory[device :: way.devices]) for device in range(way.devices))


def _cut(model: CostedNetwork, way: Way, options: Options, memory: tuple[float, ...] | None) -> Plan | None:
    """The fastest plan of a way that fits, for the limits of micro-batches in flight that may help."""
    reserve = model.hardware.reserve_bytes
    usable = None if memory is None else [limit - reserve for limit in memory]
    modes = None if options.recompute is None else (options.recompute,) * way.stages
    several = way.stages > way.devices
    for limit in (None, 2 * way.devices, way.devices) if several and way.share > way.devices else (None,):
        choices = cut_for(
            model,
            devices=way.devices,
            stages=way.stages,
            schedule=way.schedule,
            micro_batches=way.micro_batches,
            replicas=way.replicas,
            recompute=modes,
            limit=limit,
            memory=usable,
        )
        if choices is None:
            continue
        plan = plan_of(model, choices, memory=memory)
        if memory is None or all(load.peak_bytes <= limit for load, limit in zip(plan.devices, memory)):
            return plan
    return None


def _cut_anyway(model: CostedNetwork, way: Way, options: Options, memory: tuple[float, ...]) -> Plan:
    """The plan of a way that needs least memory, although it does not fit."""
    again: Recompute = options.recompute or "all"
    modes = (again,) * way.stages
    limit = way.devices if way.stages > way.devices else None
    choices = cut_for(
        model,
        devices=way.devices,
        stages=way.stages,
        schedule=way.schedule,
        micro_batches=way.micro_batches,
        replicas=way.replicas,
        recompute=modes,
        limit=limit,
    )
    assert choices is not None
    return plan_of(model, choices, memory=memory)


def _better(plan: Plan, than: Plan) -> bool:
    if plan.step_seconds < than.step_seconds * (1 - CLOSE):
        return True
    return plan.step_seconds <= than.step_seconds * (1 + CLOSE) and plan.peak_bytes < than.peak_bytes * (1 - CLOSE)


def _slower(plan: Plan, best: Plan) -> Alternative:
    label = describe_choices(plan.choices)
    return Alternative(label, plan.step_seconds, plan.peak_bytes, f"devices idle {plan.bubble:.0%}")


def _against(best: Plan, other: Alternative) -> Alternative:
    """An alternative with its time relative to the best."""
    if other.step_seconds is None or other.peak_bytes is None:
        return other
    ratio = other.step_seconds / best.step_seconds - 1
    if abs(ratio) <= CLOSE:
        text = f"as fast, fullest device {format_bytes(other.peak_bytes)} against {format_bytes(best.peak_bytes)}"
    else:
        text = f"{ratio:+.0%} in time; {other.verdict}"
    return replace(other, verdict=text)


def _too_large(plan: Plan) -> Alternative:
    worst = max(plan.devices, key=lambda load: load.peak_bytes / (load.memory_bytes or 1.0))
    assert worst.memory_bytes is not None
    needs, has = format_bytes(worst.peak_bytes), format_bytes(worst.memory_bytes)
    text = f"does not fit: device {worst.index} needs {needs} of {has}"
    return Alternative(describe_choices(plan.choices), None, plan.peak_bytes, text)


def _way_text(way: Way) -> str:
    cuts = tuple(range(1, way.stages))
    none: Recompute = "none"
    choices = Choices(way.devices, way.replicas, way.micro_batches, way.schedule, cuts, (none,) * way.stages)
    return describe_choices(choices)


def _time_of(alternative: Alternative) -> float:
    return float("inf") if alternative.step_seconds is None else alternative.step_seconds

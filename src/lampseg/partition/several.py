"""The cut of schedules with several stages a device: balanced in time, exactly; then made to fit the memory.

Interleaved: the slowest of all stages sets the pace; its time is minimised over all cuts (the recursion of `solver`).

V: the two stages of a device, one from each end, count together. Going from the outside in, device after device, a
sweep finds which pairs (end of the left stages, beginning of the right ones) can be reached if no device may take
longer than T; the smallest T for which the two meet is found by bisection: exact up to the precision of T.

What does not fit the memory then runs its forward again (recompute), stage after stage of the fullest device, first
where most bytes are saved for a second.
"""

from collections.abc import Sequence

import numpy as np

from lampseg.partition.cost import IntervalCosts, Regime, Table
from lampseg.partition.plan import Recompute
from lampseg.partition.schedule import Schedule, device_of
from lampseg.partition.solver import Cut, solve

_PRECISION = 1e-5


def solve_several(
    costs: IntervalCosts,
    *,
    schedule: Schedule,
    devices: int,
    stages: int,
    regime: Regime,
    memory: Sequence[float] | None = None,
) -> Cut | None:
    """Finds the cuts; None if there are too few operations, or what does not fit could not be made to.

    Args:
        regime: `held` and, if given, `recompute` have an entry for each stage.
        memory: bytes of each device.
    """
    if stages > costs.count:
        return None
    if schedule == "v":
        positions = _fold(costs, devices)
    else:
        open_regime = Regime(2, regime.held, _none(stages), regime.optimizer_bytes_per_parameter_byte)
        cut = solve(costs, stages=stages, regime=open_regime)
        positions = None if cut is None else list(cut.positions)
    if positions is None:
        return None
    return _made_to_fit(costs, positions, schedule=schedule, devices=devices, regime=regime, memory=memory)


def _fold(costs: IntervalCosts, devices: int) -> list[int] | None:
    """Cuts of the V: the slowest device is as fast as possible."""
    prefix = costs.seconds(again=False)[0, :]
    total = float(prefix[-1])
    low, high = total / devices * (1 - _PRECISION), total
    best = _folded(prefix, devices, high)
    if best is None:
        return None
    while high - low > _PRECISION * total:
        middle = (low + high) / 2
        found = _folded(prefix, devices, middle)
        if found is None:
            low = middle
        else:
            best, high = found, middle
    return best


def _folded(prefix: Table, devices: int, bound: float) -> list[int] | None:
    """Cuts such that no device takes longer than `bound`, or None; `prefix` sums the times of the positions."""
    count = len(prefix) - 1
    bound *= 1 + 1e-12
    ends = np.arange(count + 1)
    # reached[a, b]: the devices so far can hold exactly the positions before a and from b on.
    reached = np.zeros((count + 1, count + 1), dtype=bool)
    reached[0, count] = True
    came_from = []
    for _ in range(devices - 1):
        # For a left stage that ends at a' and a right one that ends at b, the left one had best begin late.
        begun = np.maximum.accumulate(np.where(reached, ends[:, None], -1), axis=0)
        begun = np.vstack([np.full((1, count + 1), -1), begun[:-1]])  # [a', b]: before a'
        load = np.where(begun >= 0, prefix[:, None] - prefix[begun] + prefix[None, :], np.inf)
        least = np.full((count + 1, count + 1), np.inf)  # [a', b']: the least over b > b'
        least[:, :-1] = np.minimum.accumulate(load[:, :0:-1], axis=1)[:, ::-1]
        came_from.append((begun, load))
        reached = (least <= bound + prefix[None, :]) & (ends[:, None] < ends[None, :])
    fits = reached & (ends[None, :] - ends[:, None] >= 2) & (prefix[None, :] - prefix[:, None] <= bound)
    if not fits.any():
        return None
    a, b = (int(index) for index in np.unravel_index(np.argmax(fits), fits.shape))
    halfway = a + 1 + int(np.argmin(np.abs(prefix[a + 1 : b] - (prefix[a] + prefix[b]) / 2)))
    cuts = [halfway]
    for begun, load in reversed(came_from):
        cuts += [a, b]
        b += 1 + int(np.argmin(load[a, b + 1 :]))
        a = int(begun[a, b])
    return sorted(cuts)


def _made_to_fit(
    costs: IntervalCosts,
    positions: Sequence[int],
    *,
    schedule: Schedule,
    devices: int,
    regime: Regime,
    memory: Sequence[float] | None,
) -> Cut | None:
    stages = len(positions) + 1
    spans = list(zip((0, *positions), (*positions, costs.count)))
    modes: list[Recompute] = list(regime.recompute or _none(stages))
    if memory is None:
        return Cut(tuple(positions), tuple(modes))
    places = [device_of(schedule, stage, stages=stages, devices=devices) for stage in range(stages)]

    def needs(stage: int, mode: Recompute) -> float:
        return float(costs.peak_bytes(regime, held=regime.held[stage], again=mode != "none", at=spans[stage]))

    for device in range(devices):
        mine = [stage for stage in range(stages) if places[stage] == device]
        workspace = max(float(costs.workspace[spans[stage]]) for stage in mine)
        while device_peak(costs, spans, modes, mine, regime) + workspace > memory[device]:
            left = [stage for stage in mine if modes[stage] == "none" and needs(stage, "all") < needs(stage, "none")]
            if regime.recompute is not None or not left:
                return None
            worth = {s: (needs(s, "none") - needs(s, "all")) / max(costs.forward[spans[s]], 1e-30) for s in left}
            modes[max(left, key=worth.__getitem__)] = "all"
    return Cut(tuple(positions), tuple(modes))


def device_peak(
    costs: IntervalCosts,
    spans: Sequence[tuple[int, int]],
    modes: Sequence[Recompute],
    mine: Sequence[int],
    regime: Regime,
) -> float:
    """Peak bytes of the tensors of a device with the stages `mine`: one runs, the others keep what is in flight."""
    state, kept, active = 0.0, {}, {}
    for stage in mine:
        held, again, span = regime.held[stage], modes[stage] != "none", spans[stage]
        state += float(costs.state_bytes(regime, at=span))
        kept[stage] = float(costs.kept_bytes(held=held, again=again, at=span))
        active[stage] = float(costs.active_bytes(held=held, again=again, at=span))
    return state + max(active[stage] - kept[stage] for stage in mine) + sum(kept.values())


def _none(stages: int) -> tuple[Recompute, ...]:
    none: Recompute = "none"
    return (none,) * stages

"""The cut of schedules with several stages a device: balanced in time, exactly; then made to fit the memory.

Interleaved: the slowest of all stages sets the pace; its time is minimised over all cuts (the recursion of `solver`).

V: the two stages of a device, one from each end, count together. Going from the outside in, device after device, it is
best to leave as little as possible in the middle: for each end of the left stage, the earliest beginning of the right
one such that both together take at most T. Whether a T can be kept follows from one sweep; the smallest is found by
bisection. So the cut is exact up to the precision of T.

What does not fit the memory then runs its forward again (recompute), stage after stage of the fullest device, first
where most bytes are saved for a second.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from lampseg.partition.cost import IntervalCosts, Regime
from lampseg.partition.plan import Recompute
from lampseg.partition.schedule import Schedule, device_of
from lampseg.partition.solver import Cut, solve

_PRECISION = 1e-6


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
        open_regime = Regime(2, regime.held, ("none",) * stages, regime.optimizer_bytes_per_parameter_byte)
        cut = solve(costs, stages=stages, regime=open_regime)
        positions = None if cut is None else list(cut.positions)
    if positions is None:
        return None
    return _made_to_fit(costs, positions, schedule=schedule, devices=devices, regime=regime, memory=memory)


def _fold(costs: IntervalCosts, devices: int) -> list[int] | None:
    """Cuts of the V: the slowest device is as fast as possible."""
    prefix = np.concatenate([[0.0], np.cumsum(np.diff(costs.seconds(again=False)[0, :]))])
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


def _folded(prefix: np.ndarray, devices: int, bound: float) -> list[int] | None:
    """Cuts such that no device takes longer than `bound`, or None; `prefix` sums the times of the positions."""
    count = len(prefix) - 1
    ends = np.arange(count + 1)
    # right[a]: the left stages so far end at a; the earliest beginning of the right ones (count + 1: impossible).
    right = np.full(count + 1, count + 1)
    right[0] = count
    came_from: list[np.ndarray] = []
    for device in range(devices - 1):
        middle = 2 * (devices - 1 - device)  # positions at least, for the devices to come
        left_time = prefix[None, :] - prefix[:, None]  # [a, a']
        last = np.where(right <= count, right, 0)
        begin = np.searchsorted(prefix, prefix[last][:, None] - (bound - left_time) - 1e-12 * bound)
        possible = (ends[None, :] > ends[:, None]) & (right <= count)[:, None] & (left_time <= bound)
        begin = np.where(possible & (begin < last[:, None]), begin, count + 1)
        begin = np.maximum(begin, ends[None, :] + middle)
        begin = np.where(begin < last[:, None], begin, count + 1)
        came_from.append(np.argmin(begin, axis=0))
        right = np.min(begin, axis=0)
    inside = np.where(right <= count, right, 0)
    fits = (right <= count) & (inside - ends >= 2) & (prefix[inside] - prefix[ends] <= bound * (1 + 1e-12))
    if not fits.any():
        return None
    a = int(np.argmax(fits))
    b = int(right[a])
    halfway = a + 1 + int(np.argmin(np.abs(prefix[a + 1 : b] - (prefix[a] + prefix[b]) / 2)))
    lefts = [a]
    for choice in reversed(came_from):
        a = int(choice[a])
        lefts.append(a)
    # The beginnings on the right, again from the outside in along the chosen lefts.
    lefts = lefts[::-1]
    rights = [count]
    for device, (before, after) in enumerate(itertools.pairwise(lefts)):
        room = bound - (prefix[after] - prefix[before])
        begin = int(np.searchsorted(prefix, prefix[rights[-1]] - room - 1e-12 * bound))
        rights.append(max(begin, after + 2 * (devices - 1 - device)))
    return [*lefts[1:], halfway, *reversed(rights[1:])]


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
    modes: list[Recompute] = list(regime.recompute or ("none",) * stages)
    if memory is None:
        return Cut(tuple(positions), tuple(modes))
    places = [device_of(schedule, stage, stages=stages, devices=devices) for stage in range(stages)]

    def needs(stage: int, mode: Recompute) -> float:
        peak = costs.peak_bytes(regime, held=regime.held[stage], again=mode != "none")
        return float(peak[spans[stage]])

    for device in range(devices):
        mine = [stage for stage in range(stages) if places[stage] == device]
        while device_peak(costs, spans, modes, mine, regime) > memory[device]:
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
    """Peak bytes of a device with the stages `mine`: what all keep, and the walk through the one that needs most."""
    total, most = 0.0, 0.0
    for stage in mine:
        span, again = spans[stage], modes[stage] != "none"
        peak = float(costs.peak_bytes(regime, held=regime.held[stage], again=again)[span])
        walk = float(costs.walk[span] + costs.received[span])
        kept = 0.0 if again else float(costs.saved[span])
        # While another stage runs, this one holds all its micro-batches, but nothing beside.
        total += peak - walk + kept
        most = max(most, walk - kept)
    return total + most

"""The solver equals brute force over all cuts: time, then memory, then bytes; with memory limits and recompute."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from monai.networks.nets import BasicUNet
from torch import nn

from lampseg.networks import SEUNet, UNet
from lampseg.partition import cost_network
from lampseg.partition.cost import IntervalCosts, Regime
from lampseg.partition.plan import Recompute
from lampseg.partition.several import _fold, solve_several
from lampseg.partition.solver import ONE_MICRO_BATCH_SLACK, Cut, solve


class Tables(IntervalCosts):
    """Costs that are drawn at random, not computed from a graph."""

    def __init__(self, count: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.count = count
        self.starts = (0, *np.cumsum(draw.integers(1, 4, count - 1)).tolist())
        shape = (count, count + 1)
        self.forward = draw.integers(1, 30, shape).astype(float)
        self.backward = draw.integers(1, 60, shape).astype(float)
        self.transfer = draw.integers(0, 5, shape).astype(float)
        self.received = draw.integers(0, 20, shape).astype(float)
        self.saved = draw.integers(0, 100, shape).astype(float)
        self.walk = self.saved + draw.integers(0, 40, shape)
        self.state = draw.integers(0, 20, shape).astype(float)
        self.trainable = self.state / 2
        self.workspace = draw.integers(0, 10, shape).astype(float)


class Split:
    """One way to cut, and what it takes."""

    def __init__(self, costs: IntervalCosts, regime: Regime, cut: Cut) -> None:
        spans = list(itertools.pairwise((0, *cut.positions, costs.count)))
        again = [mode != "none" for mode in cut.recompute]
        twice = [a and k < len(spans) - 1 for k, a in enumerate(again)]
        seconds = [float(costs.seconds(again=a)[span]) for a, span in zip(twice, spans)]
        self.peaks = [
            float(costs.peak_bytes(regime, held=regime.held[k], again=again[k])[span]) for k, span in enumerate(spans)
        ]
        self.slowest = max(seconds)
        self.path = sum(s + 2 * float(costs.transfer[span]) for s, span in zip(seconds, spans))
        self.value = (regime.micro_batches - 1) * self.slowest + self.path
        self.received = sum(float(costs.received[span]) for span in spans)

    def fits(self, memory: Sequence[float] | None) -> bool:
        return memory is None or all(peak <= limit for peak, limit in zip(self.peaks, memory))


def all_splits(costs: IntervalCosts, stages: int, regime: Regime, memory: Sequence[float] | None) -> list[Split]:
    modes: list[tuple[Recompute, ...]] = (
        list(itertools.product(("none", "all"), repeat=stages)) if regime.recompute is None else [regime.recompute]
    )
    splits = (
        Split(costs, regime, Cut(inner, mode))
        for inner in itertools.combinations(range(1, costs.count), stages - 1)
        for mode in modes
    )
    return [split for split in splits if split.fits(memory)]


def check(
    costs: IntervalCosts, stages: int, regime: Regime, memory: Sequence[float] | None = None, slack: float = 0.004
) -> bool:
    """Compares; returns whether there is a split."""
    possible = all_splits(costs, stages, regime, memory)
    cut = solve(costs, stages=stages, regime=regime, memory=memory, slack=slack)
    if not possible or cut is None:
        assert cut is None
        assert not possible
        return False
    assert [*cut.positions] == sorted({*cut.positions} - {0, costs.count})
    assert len(cut.positions) == stages - 1
    found = Split(costs, regime, cut)
    assert found.fits(memory)
    best = min(split.value for split in possible)
    allowed = slack if regime.micro_batches > 1 else ONE_MICRO_BATCH_SLACK
    assert best * (1 - 1e-12) <= found.value <= best * (1 + allowed) * (1 + 1e-12)
    return True


def regime(stages: int, micro_batches: int = 4, recompute: tuple[Recompute, ...] | None = None) -> Regime:
    return Regime(micro_batches, tuple(min(micro_batches, stages - k) for k in range(stages)), recompute)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batches", [1, 2, 8])
@pytest.mark.parametrize("slack", [0.0, 0.004, 0.1])
def test_equals_brute_force_on_random_tables(stages: int, micro_batches: int, slack: float) -> None:
    for seed in range(12):
        costs = Tables(stages + seed % 7, seed)
        assert check(costs, stages, regime(stages, micro_batches, ("none",) * stages), slack=slack)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_equals_brute_force_with_memory_limits(stages: int) -> None:
    """Recompute is given, or left open: then it is used where it must be."""
    draw = np.random.default_rng(0)
    fits, used = [], 0
    for seed in range(48):
        modes: tuple[Recompute, ...] | None = (None, ("none",) * stages, ("all",) * stages)[seed % 3]
        way = regime(stages, 1 + seed % 5, modes)
        costs = Tables(stages + 2 + seed % 4, seed)
        none: Recompute = "none"
        free = solve(costs, stages=stages, regime=replace(way, recompute=(none,) * stages))
        assert free is not None
        memory = draw.uniform(0.5, 1.1, stages) * Split(costs, way, free).peaks
        fits.append(check(costs, stages, way, memory))
        if modes is None and fits[-1]:
            cut = solve(costs, stages=stages, regime=way, memory=memory)
            assert cut is not None
            used += cut.recompute.count("all")
    assert any(fits)
    assert not all(fits), "no limit was ever too small"
    assert used or stages < 3, "recompute never helped"  # 1F1B: the last stage holds one micro-batch only


def test_memory_is_the_second_aim_and_bytes_the_third() -> None:
    """Among equally fast splits the leanest is taken, among those the one that sends least."""
    better = 0
    for seed in range(40):
        costs = Tables(7, seed)
        costs.forward[:] = 1
        costs.backward[:] = 2
        costs.transfer[:] = 0
        way = regime(3, 4, ("none",) * 3)
        possible = all_splits(costs, 3, way, None)
        cut = solve(costs, stages=3, regime=way, slack=0.0)
        assert cut is not None
        found = Split(costs, way, cut)
        leanest = min(max(split.peaks) for split in possible)
        assert max(found.peaks) == leanest
        least = min(split.received for split in possible if max(split.peaks) == leanest)
        assert found.received == least
        better += leanest < max(max(split.peaks) for split in possible)
    assert better == 40


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda: UNet(filters=4, depth=3), (1, 1, 32, 32, 32)),
        (lambda: SEUNet(filters=4, depth=2), (1, 1, 32, 32, 32)),
        (lambda: BasicUNet(3, 1, 2, features=(4, 4, 8, 8, 8, 4)), (1, 1, 33, 32, 32)),
    ],
    ids=["unet", "seunet", "basicunet"],
)
def test_equals_brute_force_on_networks(network: type[nn.Module], shape: tuple[int, ...]) -> None:
    costs = cost_network(network(), shape=shape).costs
    assert costs.count > 10
    for stages in (1, 2, 3):
        assert check(costs, stages, regime(stages, 2, ("none",) * stages))


def test_no_more_stages_than_positions() -> None:
    assert solve(Tables(3, 0), stages=4, regime=regime(4)) is None
    assert solve(Tables(3, 0), stages=3, regime=regime(3)) is not None
    assert solve_several(Tables(3, 0), schedule="v", devices=2, stages=4, regime=regime(4)) is None


def additive(count: int, seed: int) -> Tables:
    """Times of intervals are sums over positions, as those of networks are."""
    costs = Tables(count, seed)
    draw = np.random.default_rng(seed)
    for name in ("forward", "backward", "saved", "state"):
        total = np.concatenate([[0.0], np.cumsum(draw.integers(1, 30, count))])
        setattr(costs, name, total[None, :] - total[:-1, None])
    costs.walk = costs.saved + draw.integers(1, 9)
    costs.trainable = costs.state
    return costs


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_the_v_is_as_balanced_as_any(devices: int) -> None:
    for seed in range(60):
        costs = additive(2 * devices + seed % 6, seed)
        seconds = costs.seconds(again=False)

        def slowest(cuts: Sequence[int], seconds: np.ndarray = seconds) -> float:
            spans = list(itertools.pairwise((0, *cuts, seconds.shape[0])))
            return max(float(seconds[spans[d]] + seconds[spans[-1 - d]]) for d in range(devices))

        every = itertools.combinations(range(1, costs.count), 2 * devices - 1)
        found = _fold(costs, devices)
        assert found is not None
        assert len(found) == 2 * devices - 1
        assert found == sorted({*found} - {0, costs.count})
        assert slowest(found) == pytest.approx(min(map(slowest, every)), rel=3e-5)


def test_several_stages_are_made_to_fit_by_recompute() -> None:
    costs = additive(12, 3)
    costs.received[:] = 1
    costs.state[:] = costs.trainable[:] = 0
    way = Regime(4, (4, 3, 2, 1))
    free = solve_several(costs, schedule="v", devices=2, stages=4, regime=way)
    assert free is not None
    assert set(free.recompute) == {"none"}
    limits = [(1e9, 1e9), (300.0, 300.0), (250.0, 250.0), (200.0, 200.0), (10.0, 10.0)]
    found = [solve_several(costs, schedule="v", devices=2, stages=4, regime=way, memory=memory) for memory in limits]
    counts = [cut.recompute.count("all") if cut is not None else None for cut in found]
    assert counts[0] == 0
    assert counts[-1] is None
    assert any(count for count in counts), counts
    fixed = Regime(4, (4, 3, 2, 1), ("none",) * 4)
    assert solve_several(costs, schedule="v", devices=2, stages=4, regime=fixed, memory=(200.0, 200.0)) is None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mode", [None, "none", "all"])
def test_no_split_needs_less_than_the_least_peak(seed: int, mode: Recompute | None) -> None:
    costs = Tables(6, seed)
    for stages in (1, 2, 3, 6):
        regime = Regime(1, (1,) * stages, None if mode is None else (mode,) * stages)
        least = costs.least_peak(regime)
        assert all(max(split.peaks) >= least for split in all_splits(costs, stages, regime, None))
    alone = Regime(1, (1,), None if mode is None else (mode,))
    assert costs.least_peak(alone) >= min(
        float(costs.peak_bytes(alone, held=1, again=a)[0, 1:].min()) for a in (False, True)
    )

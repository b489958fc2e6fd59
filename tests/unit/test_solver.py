"""The solver equals brute force over all cuts, for its three objectives and with memory limits."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from monai.networks.nets import BasicUNet
from torch import nn

from lampseg.networks import SEUNet, UNet
from lampseg.partition import Training, record
from lampseg.partition.cost import IntervalCosts
from lampseg.partition.planner import costs_of
from lampseg.partition.solver import solve


class Tables(IntervalCosts):
    """Costs that are drawn at random, not computed from a graph."""

    def __init__(self, count: int, seed: int) -> None:
        draw = np.random.default_rng(seed)
        self.count = count
        self.starts = (0, *np.cumsum(draw.integers(1, 4, count - 1)).tolist())
        shape = (count, count + 1)
        self.forward = draw.integers(1, 30, shape).astype(float)
        self.backward = draw.integers(1, 60, shape).astype(float)
        self.received = draw.integers(0, 50, shape).astype(float)
        self.saved = draw.integers(0, 100, shape).astype(float)
        self.state = draw.integers(0, 20, shape).astype(float)
        self.trainable = self.state / 2
        self.workspace = draw.integers(0, 20, shape).astype(float)
        self.logits = 0


def brute_force(
    costs: IntervalCosts, stages: int, training: Training, memory: Sequence[float] | None, slack: float
) -> tuple[float, float, float] | None:
    """Time of the slowest stage at best; memory of the fullest at that speed; fewest bytes received at both."""
    seconds = costs.seconds(training)
    found = []
    for inner in itertools.combinations(range(1, costs.count), stages - 1):
        ends = (0, *inner, costs.count)
        spans = [(ends[k], ends[k + 1]) for k in range(stages)]
        peaks = [costs.peak_bytes(training, stage=k, stages=stages)[span] for k, span in enumerate(spans)]
        if memory is not None and any(peak > memory[k] for k, peak in enumerate(peaks)):
            continue
        slowest = max(seconds[span] for span in spans)
        found.append((slowest, max(peaks), sum(costs.received[span] for span in spans)))
    if not found:
        return None
    best = min(slowest for slowest, _, _ in found)
    fast = [split for split in found if split[0] <= best * (1 + slack)]
    leanest = min(peak for _, peak, _ in fast)
    return best, leanest, min(received for _, peak, received in fast if peak <= leanest * (1 + slack))


def check(
    costs: IntervalCosts, stages: int, training: Training, memory: Sequence[float] | None = None, slack: float = 0.02
) -> bool:
    """Compares; returns whether there is a split."""
    expected = brute_force(costs, stages, training, memory, slack)
    cuts = solve(costs, stages=stages, training=training, memory=memory, slack=slack)
    if expected is None or cuts is None:
        assert cuts is None
        assert expected is None
        return False
    assert len(cuts) == stages - 1
    ends = [0, *(costs.starts.index(cut) for cut in cuts), costs.count]
    spans = list(itertools.pairwise(ends))
    assert all(i < j for i, j in spans)
    seconds = costs.seconds(training)
    assert max(seconds[span] for span in spans) <= expected[0] * (1 + slack) * (1 + 1e-12)
    peaks = [costs.peak_bytes(training, stage=k, stages=stages)[span] for k, span in enumerate(spans)]
    assert max(peaks) <= expected[1] * (1 + slack) * (1 + 1e-12)
    assert sum(costs.received[span] for span in spans) == pytest.approx(expected[2])
    if memory is not None:
        assert all(peak <= memory[k] for k, peak in enumerate(peaks))
    return True


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize("slack", [0.0, 0.02, 0.5])
def test_equals_brute_force_on_random_tables(stages: int, slack: float) -> None:
    for seed in range(25):
        assert check(Tables(stages + seed % 7, seed), stages, Training(4), slack=slack)


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_equals_brute_force_with_memory_limits(stages: int) -> None:
    draw = np.random.default_rng(0)
    fits = []
    for seed in range(60):
        training = Training(4, ("gpipe", "1f1b")[seed % 2], ("none", "all")[seed // 2 % 2])
        memory = draw.integers(100, 500, stages).astype(float)
        fits.append(check(Tables(stages + 3 + seed % 5, seed), stages, training, memory))
    assert any(fits)
    assert not all(fits), "no limit was ever too small"


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
    built = network()
    costs = costs_of(record(built, shape=shape), built, device="cpu")
    assert costs.count > 10
    for stages in (1, 2, 3):
        assert check(costs, stages, Training(2))


def test_no_more_stages_than_positions() -> None:
    assert solve(Tables(3, 0), stages=4, training=Training()) is None
    assert solve(Tables(3, 0), stages=3, training=Training()) is not None

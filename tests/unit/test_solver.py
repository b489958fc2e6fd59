"""The solver equals brute force over all cuts, for both of its objectives and with memory limits."""

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


def brute_force(
    costs: IntervalCosts, stages: int, training: Training, memory: Sequence[float] | None, slack: float
) -> tuple[float, float] | None:
    """(time of the slowest stage at best, fewest bytes received by a split at most `slack` slower)."""
    seconds = costs.seconds(training)
    found = []
    for inner in itertools.combinations(range(1, costs.count), stages - 1):
        ends = (0, *inner, costs.count)
        spans = [(ends[k], ends[k + 1]) for k in range(stages)]
        if memory is not None and any(
            costs.peak_bytes(training, stage=k, stages=stages)[span] > memory[k] for k, span in enumerate(spans)
        ):
            continue
        found.append((max(seconds[span] for span in spans), sum(costs.received[span] for span in spans)))
    if not found:
        return None
    best = min(slowest for slowest, _ in found)
    return best, min(received for slowest, received in found if slowest <= best * (1 + slack))


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
    assert sum(costs.received[span] for span in spans) == pytest.approx(expected[1])
    if memory is not None:
        for k, span in enumerate(spans):
            assert costs.peak_bytes(training, stage=k, stages=stages)[span] <= memory[k]
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

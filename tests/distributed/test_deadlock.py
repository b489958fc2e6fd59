"""No plan can deadlock, whatever its cuts, layout and predicted times, where a send ends only when it is received.

Devices are threads here, and messages as strict as NCCL's (`tests.equivalence.threads`).
"""

import functools
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lampseg.parallel.pipeline import runner
from lampseg.parallel.pipeline.itinerary import Itinerary
from lampseg.partition.plan import RECOMPUTE
from lampseg.partition.schedule import SCHEDULES, Action
from tests.equivalence import one_device
from tests.equivalence.one_device import assert_same, run_device, run_whole, together
from tests.equivalence.remembered import recorded_once
from tests.equivalence.threads import Deadlock, run_threads
from tests.unit.test_schedule import random_pace

SHAPES = ((1, 1, 6), (2, 1, 5), (1, 1, 7), (2, 1, 6), (1, 1, 5), (1, 1, 6))
LAYERS = 9


class Dense(nn.Module):
    """Every layer reads what all before it made: as many messages as there can be, to all stages."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(1, 1, 3, padding=1) for _ in range(LAYERS))

    def forward(self, x: Tensor) -> Tensor:
        made = [x]
        for layer in self.layers:
            made.append(layer(sum(made)).tanh())
        return made[-1]


def build() -> nn.Module:
    torch.manual_seed(2)
    return Dense().double()


def data(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES[:count]]


@functools.cache
def expected(count: int) -> dict[str, Any]:
    return run_whole(build(), data(count))


@pytest.fixture(autouse=True)
def record_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (runner, one_device):
        monkeypatch.setattr(module, "record_for", recorded_once)


def run_random_plans(seeds: range) -> None:
    for seed in seeds:
        run_random_plan(seed)


def run_random_plan(seed: int) -> None:
    draw = random.Random(seed)
    schedule = SCHEDULES[seed % len(SCHEDULES)]
    devices, count = draw.randint(2, 4), draw.randint(1, len(SHAPES))
    stages = devices * {"gpipe": 1, "1f1b": 1, "v": 2, "interleaved": draw.choice((2, 3))}[schedule]
    graph = recorded_once(build(), shape=SHAPES[0], precision="float64", device="cpu")
    cuts = sorted(draw.sample([at for at in range(1, len(graph.operations)) if at not in graph.forbidden], stages - 1))
    recompute = [draw.choice(RECOMPUTE) for _ in range(stages)]
    limit = draw.choice((None, draw.randint(1, count)))
    way = (schedule, recompute, random_pace(stages, draw), limit)
    found = together(run_threads(run_device, devices, build(), cuts, data(count), *way))
    assert_same(found, expected(count), label=f"seed {seed}, cuts {cuts}, {way}")


@pytest.mark.parametrize("first", range(0, 60, 15))
def test_random_plans_end_with_the_right_result(first: int) -> None:
    run_random_plans(range(first, first + 15))


def test_sends_that_are_waited_for_at_once_would_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which shows that these threads notice it, and that the rule is needed."""

    def at_once(itinerary: Itinerary, receiving: Action) -> int:
        return 0

    monkeypatch.setattr(Itinerary, "may_wait", at_once)
    with pytest.raises(Deadlock):
        run_random_plans(range(60))

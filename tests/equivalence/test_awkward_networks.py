"""Networks that are hard to split: exact in every allowed cut. Devices are threads here, to afford so many cuts."""

import copy
import itertools
import random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lampseg.parallel.pipeline import runner
from lampseg.partition import record_for
from tests.equivalence import awkward, awkward_state, one_device
from tests.equivalence.awkward import ThreeConvolutions
from tests.equivalence.one_device import assert_same, run_device, run_whole, together
from tests.equivalence.remembered import recorded_once
from tests.equivalence.threads import run_threads

RANDOM = (awkward_state.RandomNumbers, awkward_state.DropoutThenInPlace, awkward_state.Attention)
EXACT = tuple(
    kind
    for module in (awkward, awkward_state)
    for kind in vars(module).values()
    if isinstance(kind, type)
    and issubclass(kind, ThreeConvolutions)
    and kind.__module__ == module.__name__
    and kind not in (ThreeConvolutions, *RANDOM)
)
SHAPES = ((2, 1, 6), (1, 1, 9), (2, 1, 6))
WAYS = (("1f1b", "none"), ("gpipe", "all"), ("gpipe", "all_but_last"), ("1f1b", "all"))
LAYOUTS = (
    ("v", 2, ("none", "all", "none", "all_but_last")),
    ("interleaved", 2, ("all", "none", "all_but_last", "none")),
    ("v", 1, ("none", "none")),
    ("interleaved", 1, ("none", "all", "all")),
    ("v", 1, ("all", "all")),
)
"""Several stages a device: schedule, devices, recompute of each stage."""


@pytest.fixture(autouse=True)
def record_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (runner, one_device):
        monkeypatch.setattr(module, "record_for", recorded_once)


def build(kind: type[ThreeConvolutions]) -> nn.Module:
    torch.manual_seed(1)
    return kind().double()


def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def all_cuts(network: nn.Module) -> list[tuple[int, ...]]:
    """Two stages: every allowed cut (of many, a sample). Three stages: a sample."""
    graph = record_for(network, shape=SHAPES[0], precision="float64", device="cpu")
    allowed = [at for at in range(1, len(graph.operations)) if at not in graph.forbidden]
    three = list(itertools.combinations(allowed, 2))
    draw = random.Random(0)
    two = sorted(draw.sample(allowed, min(14, len(allowed))))
    return [(at,) for at in two] + draw.sample(three, min(4, len(three)))


def layouts(network: nn.Module) -> list[tuple[tuple[int, ...], int, tuple[Any, ...]]]:
    """Several stages a device, cut at random: cuts, devices, schedule and recompute."""
    graph = record_for(network, shape=SHAPES[0], precision="float64", device="cpu")
    allowed = [at for at in range(1, len(graph.operations)) if at not in graph.forbidden]
    draw = random.Random(1)
    found = []
    for schedule, devices, recompute in LAYOUTS:
        if len(recompute) <= len(allowed) + 1:
            found.append((tuple(sorted(draw.sample(allowed, len(recompute) - 1))), devices, (schedule, recompute)))
    return found


@pytest.mark.parametrize("kind", EXACT, ids=lambda kind: kind.__name__)
def test_equals_one_device_in_every_cut(kind: type[ThreeConvolutions]) -> None:
    expected = run_whole(build(kind), data())
    cuts_and_ways = list(zip(all_cuts(build(kind)), itertools.cycle(WAYS)))
    assert cuts_and_ways
    for cuts, way in cuts_and_ways:
        stages = run_threads(run_device, len(cuts) + 1, build(kind), cuts, data(), *way)
        assert_same(together(stages), expected, label=f"cuts {cuts}, {way}")
    for cuts, devices, layout in layouts(build(kind)):
        parts = run_threads(run_device, devices, build(kind), cuts, data(), *layout)
        assert_same(together(parts), expected, label=f"cuts {cuts}, {devices} devices, {layout}")


@pytest.mark.parametrize("kind", RANDOM, ids=lambda kind: kind.__name__)
def test_random_numbers_do_not_depend_on_the_cut(kind: type[ThreeConvolutions]) -> None:
    whole = together(run_threads(run_device, 1, build(kind), (), data()))
    for cuts, way in zip(all_cuts(build(kind)), itertools.cycle(WAYS)):
        stages = run_threads(run_device, len(cuts) + 1, build(kind), cuts, data(), *way)
        assert_same(together(stages), whole, label=f"cuts {cuts}, {way}")
    for cuts, devices, layout in layouts(build(kind)):
        parts = run_threads(run_device, devices, build(kind), cuts, data(), *layout)
        assert_same(together(parts), whole, label=f"cuts {cuts}, {devices} devices, {layout}")
    plain = run_whole(build(kind), data())
    assert plain["losses"] != pytest.approx(whole["losses"]), "nothing was random"
    torch.testing.assert_close(whole["outputs"], plain["outputs"])  # eval mode is not


@pytest.mark.parametrize("kind", EXACT + RANDOM, ids=lambda kind: kind.__name__)
def test_recording_leaves_the_network_as_it_was(kind: type[ThreeConvolutions]) -> None:
    network = build(kind)
    before = copy.deepcopy(network)
    record_for(network, shape=SHAPES[0], precision="float64", device="cpu")
    assert network.__dict__.keys() == before.__dict__.keys()
    assert getattr(network, "seen", None) == getattr(before, "seen", None)
    for name, tensor in before.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name

"""How much work a plan is, counted: recordings, calls, sizes tried, and what is imported for it."""

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

import lampseg.parallel.spatial.forecast as forecast
import lampseg.partition.costed as costed
from lampseg.commands.plan import subject_of
from lampseg.config import Config
from lampseg.errors import UserError
from lampseg.parallel.spatial.meter import Meter
from lampseg.partition.problem import Problem
from lampseg.partition.questions import largest_patch
from lampseg.partition.search import Found
from lampseg.recording.fake_mode import DryMode
from lampseg.training.plans import make_plans

SIZE = (64, 64, 96)


def subject(devices: str) -> Any:
    tree = {
        "network": {"name": "unet", "filters": 8, "depth": 3},
        "data": {"root": "unused"},
        "curriculum": [{"patch": "whole", "batch": 1, "steps": 1}],
        "parallel": {"devices": devices},
    }
    return subject_of(Config.model_validate(tree), shape=SIZE, classes=3)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that are recorded."""
    shapes: list[tuple[int, ...]] = []
    record = costed.record

    def counted(network: Any, *, shape: tuple[int, ...], **options: Any) -> Any:
        shapes.append(shape)
        return record(network, shape=shape, **options)

    monkeypatch.setattr(costed, "record", counted)
    return shapes


def test_what_fits_is_recorded_once(recordings: list[tuple[int, ...]]) -> None:
    asked = subject("2x80GiB")
    make_plans(asked)
    assert recordings == [(1, 1, *SIZE)]
    before = DryMode.dispatched
    make_plans(asked)
    assert DryMode.dispatched - before < 1000  # of more than 10 000 calls; those not remembered


@pytest.mark.parametrize("memory", ["700MiB", "1.025GiB"])
def test_what_does_not_fit_is_recorded_for_few_sizes(memory: str, recordings: list[tuple[int, ...]]) -> None:
    with pytest.raises(UserError, match="does not fit"):
        make_plans(subject(f"2x{memory}"))
    assert len(recordings) <= 2 + 4  # in float32 and bfloat16, and smaller ones


@pytest.mark.parametrize(
    ("memory", "measured", "rehearsed"),
    [("1.005GiB", 1, 2), ("1.015GiB", 3, 3)],
    ids=["far from fitting", "near to fitting"],
)
def test_slabs_that_do_not_fit_are_rehearsed_few_times(
    memory: str, measured: int, rehearsed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two grids that cut alike; each level of modules within modules once took a rehearsal on both."""
    measurements, slabs = [], []
    measure, cost = Meter.measure, forecast.slab_cost

    def measuring(meter: Meter, fake: Any) -> None:
        measurements.append(meter)
        measure(meter, fake)

    def costing(*args: Any, **options: Any) -> Any:
        slabs.append(args)
        return cost(*args, **options)

    monkeypatch.setattr(Meter, "measure", measuring)
    monkeypatch.setattr(forecast, "slab_cost", costing)
    with pytest.raises(UserError, match="does not fit"):
        make_plans(subject(f"4x{memory}"))
    assert len(measurements) <= measured
    assert len(slabs) <= rehearsed


@pytest.mark.parametrize("seed", range(30))
def test_few_sizes_find_the_largest_patch(seed: int) -> None:
    draw = np.random.default_rng(seed)
    volume = tuple(int(size) for size in draw.integers(20, 800, 3))
    constant, limit, smallest = draw.uniform(0, 1e6), draw.uniform(1e5, 4e8), int(draw.integers(0, 60))
    tried: list[tuple[int, ...]] = []

    def need(size: tuple[int, ...]) -> float:
        return float(constant + np.prod(size) ** 1.02)

    def solve(problem: Problem) -> Found:
        size = problem.size
        tried.append(size)
        if max(size) < smallest:
            raise UserError("too small")
        state = dict.fromkeys(("library_bytes", "parameter_bytes", "gradient_bytes", "optimizer_bytes"), 0)
        load = SimpleNamespace(peak_bytes=need(size), memory_bytes=limit, **state)
        return Found(cast(Any, SimpleNamespace(devices=(load,))), fits=need(size) <= limit)

    problem = Problem(cast(Any, None), "any", volume, 1, cast(Any, None))
    found = largest_patch(problem, stride=(8, 8, 8), volume=volume, solve=solve)
    whole = [-(-size // 8) * 8 for size in volume]
    sizes = [tuple(min(edge, size) for size in whole) for edge in range(8, max(whole) + 8, 8)]
    fitting = [size for size in sizes if need(size) <= limit and max(size) >= smallest]
    assert (found[0] if found else None) == (fitting[-1] if fitting else None)
    assert len(tried) <= 12


def test_planning_loads_no_compiler_and_no_scipy() -> None:
    code = """
import json, sys
from tests.unit.test_planning_work import make_plans, subject
make_plans(subject("2x80GiB"))
parts = ("torch._dynamo", "torch._dynamo.eval_frame", "torch._inductor", "scipy", "monai", "nibabel")
loaded = [name for name in parts if name in sys.modules]
import torch
doubled = torch.compile(lambda x: 2 * x, backend="eager")(torch.ones(2)).tolist()
print(json.dumps([loaded, doubled, torch._dynamo.config is sys.modules["torch._dynamo.config"]]))
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(out.splitlines()[-1]) == [[], [2.0, 2.0], True]


def test_a_part_of_the_compiler_that_is_imported_is_the_real_one() -> None:
    code = """
import sys
from lampseg.light import uncompiled
import torch
with uncompiled():
    import torch._dynamo.utils as utils
    assert utils is sys.modules["torch._dynamo.utils"] is torch._dynamo.utils
    assert "torch._dynamo.eval_frame" in sys.modules and torch._dynamo is sys.modules["torch._dynamo"]
assert not [finder for finder in sys.meta_path if "lampseg" in type(finder).__module__]
"""
    subprocess.run([sys.executable, "-c", code], check=True)

"""Modules that run again on slabs change nothing but the memory: results as before, and as many bytes as foreseen."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lampseg.parallel.model import ParallelModel
from lampseg.parallel.spatial.forecast import slab_plan
from lampseg.parallel.spatial.grids import choices_for
from lampseg.parallel.spatial.recompute import Recompute
from lampseg.partition.costed import CostedNetwork, cost_network
from lampseg.partition.plan import Plan
from lampseg.recording.live import LiveBytes
from lampseg.training.loss import HybridLoss
from lampseg.training.supervision import supervised_loss
from tests.equivalence.spatial_cases import CLASSES, Run, network_of, run_slabs, run_whole, stride_of
from tests.ranks import run_ranks, sub_world

pytestmark = pytest.mark.timeout(500)

NETWORKS = ("ours-batch", "basicunet-dropout", "dynunet-deep", "residualencoderunet")
SHAPES = {"2": (2, 1, 3, 1, 2), "2x2": (1, 1, 3, 1, 2)}
"""Samples and channels; spatial sizes in units of the stride, so that slabs are uneven."""
GRIDS = {"2": (2, 1, 1), "2x2": (2, 1, 2)}


def shape_of(name: str, mesh: str) -> tuple[int, ...]:
    samples, channels, *units = SHAPES[mesh]
    return (samples, channels, *(stride_of(name) * unit for unit in units))


def costed(name: str, shape: tuple[int, ...], precision: str = "float64") -> CostedNetwork:
    return cost_network(network_of(name, precision).train(), shape=shape, precision=precision, loss=None)


def least(model: CostedNetwork, name: str, grid: tuple[int, ...]) -> Recompute:
    choices = choices_for(model, grid, micro_batches=1, replicas=1)
    return Recompute(model, choices, stride=(stride_of(name),) * 3)


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """The modules are those that the planner finds."""
    found = []
    for name in NETWORKS:
        for mesh, grid in GRIDS.items():
            shape = shape_of(name, mesh)
            modules = least(costed(name, shape), name, grid).least_memory().recomputed
            assert modules
            found.append(Run(name, mesh, shape=shape, recomputed=modules))
    return found


@pytest.fixture(scope="module")
def on_slabs(runs: list[Run]) -> dict[Run, list[dict[str, Any]]]:
    """What every rank found, of every run and of the same without recompute."""
    every = [*runs, *(replace(run, recomputed=()) for run in runs)]
    ranks = run_ranks(run_slabs, 4, every, timeout=450)
    return {run: [rank[n] for rank in ranks] for n, run in enumerate(every)}


@pytest.mark.parametrize("number", range(len(NETWORKS) * len(GRIDS)))
def test_changes_nothing(number: int, runs: list[Run], on_slabs: dict[Run, list[dict[str, Any]]]) -> None:
    """Random numbers are drawn alike in both runs of a module, and BatchNorm counts once."""
    run = runs[number]
    expected = on_slabs[replace(run, recomputed=())]
    for found, there in zip(on_slabs[run], expected, strict=True):
        assert found["loss"] == there["loss"]
        for key in ("outputs", "buffers"):
            torch.testing.assert_close(found[key], there[key], rtol=0, atol=0)
        torch.testing.assert_close(found["input"], there["input"], rtol=1e-12, atol=1e-14)
        largest = max(float(grad.abs().max()) for grad in there["gradients"].values())
        assert found["gradients"].keys() == there["gradients"].keys()
        for name, grad in there["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], grad, rtol=0, atol=1e-13 * largest)
    if run.network.endswith("dropout"):
        return
    whole = run_whole(run)
    for found in on_slabs[run]:
        assert found["loss"] == pytest.approx(whole["loss"], rel=1e-14, abs=1e-14)
        largest = max(float(grad.abs().max()) for grad in whole["gradients"].values())
        for name, grad in whole["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], grad, rtol=0, atol=1e-9 * largest)
        torch.testing.assert_close(found["buffers"], whole["buffers"], rtol=1e-10, atol=1e-10)


HYBRID = HybridLoss((0.5, 1.0, 2.0))


def mean_loss(output: Any, target: Tensor) -> Tensor:
    return supervised_loss(HYBRID, output, target, None, None).mean()


def planned_loss(output: Any, shape: tuple[int, ...], placed: Any = lambda t: t) -> Tensor:
    return mean_loss(output, placed(torch.empty((shape[0], *shape[2:]), dtype=torch.int64)))


def measured(rank: int, work: list[tuple[str, Plan]]) -> list[int]:
    """The most bytes of tensors alive at once in a step of each."""
    found = []
    world = sub_world(2)
    assert world is not None
    for name, plan in work:
        torch.manual_seed(0)
        shape, stride = plan.input_shape, (stride_of(name),) * 3
        model = ParallelModel(network_of(name, "float32").train(), plan, world=world, stride=stride)
        region = model.runner.region(shape)
        part = [each.stop - each.start for each in region]
        optimizer = torch.optim.RMSprop(model.parameters().values())

        def step(runner: Any = model.runner, part: list[int] = part, shape: Any = shape) -> None:
            runner.step(
                [shape],
                load=lambda m: torch.rand((*shape[:2], *part)),
                loss=lambda m, out: mean_loss(out, runner.placed(torch.randint(0, CLASSES, (shape[0], *part)), shape)),
            )

        step()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        live = LiveBytes(fake=False)
        numbers = [t for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor)]
        for tensor in (*model.network.parameters(), *model.network.buffers(), *numbers):
            live.add(tensor)
        with live:
            step()
        found.append(live.peak)
    return found


def test_bytes_are_those_foreseen() -> None:
    """Of each of two ranks; with the modules that make them fewest, and with about half of those."""
    work: list[tuple[str, Plan]] = []
    for name in NETWORKS:
        step = stride_of(name)
        model = costed(name, (1, 1, 4 * step, 2 * step, 2 * step), "float32")
        search = least(model, name, GRIDS["2"])
        modules = search.least_memory().recomputed
        for some in ((), modules, modules[::2]):
            choices = replace(search.choices, recomputed=some)
            work.append((name, slab_plan(model, choices, stride=search.stride, loss=planned_loss)))
        assert work[-2][1].peak_bytes < work[-1][1].peak_bytes < work[-3][1].peak_bytes
    for rank, peaks in enumerate(run_ranks(measured, 2, work, timeout=400)):
        for (_, plan), peak in zip(work, peaks, strict=True):
            assert peak == pytest.approx(plan.devices[rank].tensor_bytes, rel=0.03), plan.headline()

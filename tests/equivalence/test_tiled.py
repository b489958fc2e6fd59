"""Tiles equal the whole: outputs, loss, gradients and statistics of unmodified networks, whatever the thickness."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from lampseg.parallel.tiled import TiledPasses
from lampseg.parallel.tiled.units import Unit, units_of
from tests.equivalence.spatial_cases import (
    CONVOLUTIONAL,
    OURS,
    Run,
    data_of,
    loss_of,
    network_of,
    results_of,
    run_whole,
)

THIN = 3
"""It divides no size here."""
SHAPES = {
    "ours-batch": (2, 1, 24, 8, 16),
    "ours-instance": (1, 1, 20, 16, 12),
    "ours-group": (2, 1, 8, 16, 24),
    "ours-se": (1, 1, 16, 24, 8),
    "basicunet": (1, 1, 19, 16, 33),
    "segresnet": (2, 1, 20, 12, 8),
    "vnet": (1, 1, 32, 16, 16),
    "plainconvunet": (2, 1, 14, 8, 20),
    "residualencoderunet": (1, 1, 12, 20, 8),
}
USUAL = (1, 1, 12, 8, 20)
EXACT = [
    Run(name, "", shape=SHAPES.get(name, USUAL), evaluate=evaluate)
    for name in (*OURS, *CONVOLUTIONAL)
    for evaluate in (False, True)
]
NORMS = {"ours-batch": 5, "ours-se": 15, "basicunet": 18, "segresnet": 11, "residualencoderunet": 13}
"""So many norms take part in units: all of them."""


def run_tiled(run: Run, *, tile: int) -> dict[str, Any]:
    """As `run_whole`."""
    network, (x, target) = network_of(run.network, run.precision).train(not run.evaluate), data_of(run)
    x.requires_grad_()
    passes = TiledPasses(network, tile=tile, device=x.device, precision=run.precision)
    output = passes.forward(x)
    loss = loss_of(output, target)
    loss.backward()
    assert x.grad is not None
    return results_of(network, [leaf.detach() for leaf in tree_leaves(output)], x.grad, loss)


def compare(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """1e-12 in the outputs, 1e-9 of the largest in the gradients."""
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-13)
    for here, there in zip(found["outputs"], expected["outputs"], strict=True):
        torch.testing.assert_close(here, there, rtol=0, atol=1e-12 * max(1, float(there.abs().max())))
    atol = 1e-9 * float(expected["input"].abs().max())
    torch.testing.assert_close(found["input"], expected["input"], rtol=0, atol=atol)
    assert found["gradients"].keys() == expected["gradients"].keys()
    largest = max(float(grad.abs().max()) for grad in expected["gradients"].values())
    for name, grad in expected["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], grad, rtol=0, atol=1e-9 * largest)
    torch.testing.assert_close(found["buffers"], expected["buffers"], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("run", EXACT, ids=lambda run: run.id)
def test_equals_the_whole(run: Run) -> None:
    compare(run_tiled(run, tile=THIN), run_whole(run))


@pytest.mark.parametrize("tile", [1, 2, 7, 1000])
def test_every_thickness(tile: int) -> None:
    """A single plane, and more than there are."""
    run = Run("ours-batch", "", shape=(2, 1, 24, 8, 16))
    compare(run_tiled(run, tile=tile), run_whole(run))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["ours-instance", "ours-batch", "ours-se", "basicunet", "residualencoderunet"])
def test_rounds_like_the_whole(name: str, precision: str) -> None:
    """As near to the whole in float64 as the whole in that precision is; and the same dtypes come out."""
    samples, channels, planes, *plane = SHAPES[name]
    if precision == "bfloat16":  # no level of two planes: PyTorch's gradients are wrong there (hardware/faults.py)
        planes = {"basicunet": 48}.get(name, 24)
    run = Run(name, "", shape=(samples, channels, planes, *plane), precision=precision)
    found, rounded, precise = run_tiled(run, tile=THIN), run_whole(run), run_whole(replace(run, precision="float64"))
    assert [t.dtype for t in found["outputs"]] == [t.dtype for t in rounded["outputs"]]
    assert {n: g.dtype for n, g in found["gradients"].items()} == {n: g.dtype for n, g in rounded["gradients"].items()}

    def off(results: dict[str, Any], kind: str) -> float:
        """The median: where an activation bends, rounding may decide the side, and one voxel's gradient jumps."""
        pairs = zip(tree_leaves(results[kind]), tree_leaves(precise[kind]), strict=True)
        return float(torch.cat([torch.zeros(1), *((a.double() - b).abs().flatten() for a, b in pairs)]).median())

    for kind in ("outputs", "gradients", "input", "buffers"):
        assert off(found, kind) <= 2 * off(rounded, kind) + 1e-12, kind
    assert abs(found["loss"] - precise["loss"]) <= 2 * abs(rounded["loss"] - precise["loss"]) + 1e-6


@pytest.mark.parametrize("name", ["ours-batch", "ours-se", "basicunet", "segresnet", "attentionunet"])
def test_without_gradients(name: str) -> None:
    """Inference, and batch norm's statistics in train mode without a backward."""
    run = Run(name, "", shape=SHAPES.get(name, USUAL))
    x, _ = data_of(run)
    for training in (False, True):
        whole = network_of(name).train(training)
        tiled = copy.deepcopy(whole)
        passes = TiledPasses(tiled, tile=THIN, device=x.device, precision="float64")
        with torch.no_grad():
            pairs = zip(tree_leaves(passes.forward(x.clone())), tree_leaves(whole(x.clone())), strict=True)
            for found, expected in pairs:
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(dict(tiled.named_buffers()), dict(whole.named_buffers()), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NORMS)
def test_all_norms_are_in_units(name: str) -> None:
    """Or the cases above show less than they say."""
    units = _units(network_of(name), SHAPES.get(name, USUAL))
    assert sum((unit.norm_before is not None) + (unit.norm_after is not None) for unit in units) == NORMS[name]


def _units(network: nn.Module, shape: tuple[int, ...]) -> tuple[Unit, ...]:
    passes = TiledPasses(network, tile=THIN, device=torch.device("cpu"), precision="float64")
    return units_of(passes.graph(shape))

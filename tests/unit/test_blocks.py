"""The blocks of a network on a slab: bounds are below what rehearsals give, and few modules are rehearsed."""

import subprocess
import sys

import pytest

from benchmarks.shared.networks import SMALL
from lampseg.parallel.spatial.blocks import Blocks
from lampseg.parallel.spatial.grids import choices_for
from lampseg.parallel.spatial.recompute import Recompute
from lampseg.partition.costed import CostedNetwork, cost_network
from lampseg.partition.stretches import Stretch, leanest, quickest

SIZE = (64, 64, 64)


def rehearsed(blocks: Blocks) -> dict[str, Stretch]:
    """Every module that may run again."""
    return {stretch.module: stretch for stretch in blocks.within(float("inf")) if stretch.module is not None}


def searched(model: CostedNetwork, stride: tuple[int, ...]) -> Recompute:
    return Recompute(model, choices_for(model, (2, 1, 1), micro_batches=1, replicas=1), stride=stride)


@pytest.mark.parametrize("name", ["basicunet", "dynunet-deep", "segresnet", "attentionunet", "vnet", "seunet"])
def test_bounds_are_below_what_is_rehearsed(name: str) -> None:
    network = SMALL[name].build(SIZE, meta=True)
    model, stride = cost_network(network, shape=(1, 1, *SIZE)), (16, 16, 16)
    every = searched(model, stride)
    again = rehearsed(every.blocks)
    assert len(again) > 3
    close = 0
    for module, stretch in again.items():
        bound = every.blocks.candidates[module].bound
        assert (bound.first, bound.last) == (stretch.first, stretch.last)
        assert bound.kept <= stretch.kept, module
        assert bound.peak <= stretch.peak, module
        assert bound.seconds <= stretch.seconds
        close += bound.peak > 0.8 * stretch.peak
    assert close > len(again) / 2, "else they would rule nothing out"

    positions = every.blocks.positions
    stretches = every.blocks.within(float("inf"))
    least = leanest(stretches, positions=positions)
    lazy = searched(model, stride)
    assert lazy.blocks.least_peak() <= least.peak
    assert lazy.blocks.within(0.9 * lazy.blocks.least_peak()) == []
    few = lazy.blocks.within(1.02 * least.peak)
    assert len(few) <= len(stretches)
    for limit in (1.02 * least.peak, least.peak):
        found = quickest(few, positions=positions, limit=limit)
        best = quickest(stretches, positions=positions, limit=limit)
        assert found is not None
        assert best is not None
        assert found.seconds == pytest.approx(best.seconds, rel=1e-9)
    assert leanest(lazy.blocks.leanest(), positions=positions).peak == least.peak


def test_the_first_second_run_of_a_process_takes_what_others_take() -> None:
    """PyTorch asks for its compiler as soon as a module runs again. Imported there, it takes seconds, and what fails
    within its import keeps the frames that led to it, with all that a backward holds: 17 GiB more for BasicUNet."""
    code = """
import sys
from lampseg.light import uncollected, uncompiled
from lampseg.networks import UNet
from lampseg.parallel.spatial.forecast import slab_plan
from lampseg.parallel.spatial.grids import choices_for
from lampseg.partition.costed import cost_network
from dataclasses import replace

with uncollected(), uncompiled():
    model = cost_network(UNet(out_channels=3, filters=4, depth=2, stem_stride=1), shape=(1, 1, 32, 16, 16))
    choices = choices_for(model, (2, 1, 1), micro_batches=1, replicas=1)
    choices = replace(choices, recomputed=("encoders.0", "decoders.1"))
    first, second = (slab_plan(model, choices, stride=(4, 4, 4), roughly=True) for _ in range(2))
assert first == second, (first.peak_bytes, second.peak_bytes)
assert "torch._dynamo.eval_frame" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)

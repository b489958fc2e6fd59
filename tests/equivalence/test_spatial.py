"""Slabs equal the whole: outputs, loss, gradients and statistics of unmodified networks, on 2, 4 and 2x2 ranks."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.equivalence.spatial_cases import CONVOLUTIONAL, MESHES, OURS, Run, run_slabs, run_whole
from tests.ranks import run_ranks

pytestmark = pytest.mark.timeout(400)

EXACT = [Run(name, mesh) for name in (*OURS, *CONVOLUTIONAL) for mesh in MESHES]
MORE = [
    # As on CUDA: the interior while the halo travels.
    Run("ours-batch", "2x2", overlapped=True),
    Run("residualencoderunet", "4", overlapped=True),
    # Fewer planes on the deepest levels than ranks: they are computed on every rank.
    Run("unet", "4", shape=(1, 1, 4, 8, 4)),
    Run("plainconvunet-deep", "4", shape=(1, 1, 4, 8, 8)),
    Run("dynunet", "2x2", shape=(2, 1, 4, 4, 8)),
    # Sizes that no halving divides evenly.
    Run("segresnet", "2", shape=(1, 1, 20, 8, 12)),
    Run("ours-batch", "2", evaluate=True),
    Run("ours-instance", "2x2", precision="float32"),
]
HALF = [
    Run("ours-instance", "2", precision="bfloat16"),
    Run("ours-batch", "4", precision="bfloat16"),
    # The halo adds to what was rounded before. (No slab has two planes on any level.)
    Run("ours-instance", "2", precision="bfloat16", overlapped=True, shape=(1, 1, 28, 8, 8)),
]


@pytest.fixture(scope="module")
def on_slabs() -> dict[Run, list[dict[str, Any]]]:
    """What every rank found, of every run."""
    runs = [*EXACT, *MORE, *HALF]
    ranks = run_ranks(run_slabs, 4, runs, timeout=380)
    return {run: [rank[n] for rank in ranks] for n, run in enumerate(runs)}


@pytest.mark.parametrize("run", [*EXACT, *MORE], ids=lambda run: run.id)
def test_equals_the_whole(run: Run, on_slabs: dict[Run, list[dict[str, Any]]]) -> None:
    expected = run_whole(run)
    loose = 1.0 if run.precision == "float64" else 1e8
    for found in on_slabs[run]:
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-14 * loose, abs=1e-14 * loose)
        for here, there in zip(found["outputs"], expected["outputs"], strict=True):
            torch.testing.assert_close(here, there, rtol=0, atol=1e-12 * loose * max(1, float(there.abs().max())))
        atol = 1e-12 * loose * float(expected["input"].abs().max())
        torch.testing.assert_close(found["input"], expected["input"], rtol=0, atol=atol)
        largest = max(float(grad.abs().max()) for grad in expected["gradients"].values())
        assert found["gradients"].keys() == expected["gradients"].keys()
        for name, grad in expected["gradients"].items():
            torch.testing.assert_close(found["gradients"][name], grad, rtol=0, atol=1e-9 * largest * min(loose, 1e5))
        torch.testing.assert_close(found["buffers"], expected["buffers"], rtol=1e-10 * loose, atol=1e-10 * loose)


@pytest.mark.parametrize("run", HALF, ids=lambda run: run.id)
def test_mixed_precision_rounds_like_the_whole(run: Run, on_slabs: dict[Run, list[dict[str, Any]]]) -> None:
    """As near to the whole in bfloat16 as that is to the whole in float32."""
    rounded, precise = run_whole(run), run_whole(replace(run, precision="float32"))
    off = max(float((a.float() - b).abs().max()) for a, b in zip(rounded["outputs"], precise["outputs"]))
    for found in on_slabs[run]:
        assert found["outputs"][0].dtype == rounded["outputs"][0].dtype
        for here, there in zip(found["outputs"], rounded["outputs"], strict=True):
            assert float((here.float() - there.float()).abs().max()) <= 2 * off
        assert abs(found["loss"] - rounded["loss"]) <= 2 * abs(rounded["loss"] - precise["loss"]) + 1e-3


def test_slabs_are_uneven() -> None:
    """Or the cases above show less than they say."""
    from lampseg.parallel.spatial.layout import spread_edges

    assert spread_edges(12, 2, unit=4) == (0, 8, 12)
    assert spread_edges(24, 4, unit=4) == (0, 8, 16, 20, 24)
    assert spread_edges(8, 4, unit=4) == (0, 2, 4, 6, 8)

"""Stages on slabs equal one device, on replicas x places x slabs: losses, gradients, statistics and labels."""

from typing import Any

import pytest
import torch

from tests.equivalence.mesh_cases import MeshCase, one_device, plan_for, run_meshes
from tests.equivalence.spatial_cases import CONVOLUTIONAL, OURS
from tests.ranks import run_ranks

pytestmark = pytest.mark.timeout(400)

CUT_ANYWHERE = ("ours-se", "segresnet", "vnet", "plainconvunet", "unet-batch", "residualencoderunet-deep")
ON_FOUR = [
    *(MeshCase(name) for name in (*OURS, *CONVOLUTIONAL) if name not in CUT_ANYWHERE),
    # Cuts at any operation: within a block, between a norm and its activation, across skips.
    *(MeshCase(name, cut_seed=1) for name in CUT_ANYWHERE),
    MeshCase("ours-se", cut_seed=2),
    MeshCase("ours-batch", schedule="gpipe", recompute=("all",)),
    MeshCase("ours-batch", schedule="v", recompute=("all_but_last",)),
    MeshCase("ours-se", schedule="interleaved", recompute=("none", "all", "none", "all_but_last")),
    # Fewer planes on the deepest levels than ranks: these are computed on all of them, and cut again further up.
    # The second stage begins within such a level, and must know how the levels above it were cut.
    MeshCase("unet", slabs=(1, 1, 2), shapes=((1, 1, 8, 4, 4),) * 2, cut_seed=3),
    MeshCase("dynunet", shapes=((2, 1, 8, 4, 4), (1, 1, 4, 8, 8))),
    # Sizes that no halving divides evenly.
    MeshCase("segresnet", shapes=((1, 1, 20, 8, 12), (1, 1, 12, 8, 8))),
    MeshCase("ours-batch", precision="float32"),
]
DROPOUT = [MeshCase("plainconvunet", dropout=True, recompute=(mode,)) for mode in ("none", "all")]
OTHER_MASKS = MeshCase("plainconvunet", dropout=True, seed=6)
ON_EIGHT = [
    MeshCase("ours-batch", replicas=2),
    MeshCase("residualencoderunet", slabs=(2, 2, 1), recompute=("all",)),
    MeshCase("ours-se", places=4, schedule="gpipe", cut_seed=3),
]


@pytest.fixture(scope="module")
def on_four() -> dict[MeshCase, list[dict[str, Any]]]:
    return on_ranks(4, [*ON_FOUR, *DROPOUT, OTHER_MASKS])


@pytest.fixture(scope="module")
def on_eight() -> dict[MeshCase, list[dict[str, Any]]]:
    return on_ranks(8, ON_EIGHT)


def on_ranks(size: int, cases: list[MeshCase]) -> dict[MeshCase, list[dict[str, Any]]]:
    """What every rank found, of every case."""
    assert all(case.ranks == size for case in cases)
    told = run_ranks(run_meshes, size, size, [(case, plan_for(case)) for case in cases], timeout=380)
    return {case: [rank[n] for rank in told] for n, case in enumerate(cases)}


@pytest.mark.parametrize("case", ON_FOUR, ids=lambda case: case.id)
def test_equals_one_device(case: MeshCase, on_four: dict[MeshCase, list[dict[str, Any]]]) -> None:
    check(case, on_four[case])


@pytest.mark.parametrize("case", ON_EIGHT, ids=lambda case: case.id)
def test_equals_one_device_on_eight_ranks(case: MeshCase, on_eight: dict[MeshCase, list[dict[str, Any]]]) -> None:
    check(case, on_eight[case])


def test_a_second_forward_drops_the_same(on_four: dict[MeshCase, list[dict[str, Any]]]) -> None:
    """Recompute draws a mask again, on each slab another one."""
    once, again = (on_four[case] for case in DROPOUT)
    for first, second in zip(once, again, strict=True):
        assert first["losses"] == second["losses"]
        torch.testing.assert_close(first["gradients"], second["gradients"], rtol=1e-12, atol=1e-14)
    other = on_four[OTHER_MASKS]
    assert [rank["losses"] for rank in once] != [rank["losses"] for rank in other], "each step drops others"


def check(case: MeshCase, ranks: list[dict[str, Any]]) -> None:
    expected = one_device(case)
    loose = 1.0 if case.precision == "float64" else 1e5
    losses = [value for rank in ranks for value in rank["losses"]]
    assert losses == pytest.approx(expected["losses"], rel=1e-12 * loose)
    largest = max(float(grad.abs().max()) for grad in expected["gradients"].values())
    for replica in range(case.replicas):
        mine = [rank for rank in ranks if rank["replica"] == replica]
        assert sum(rank["yields"] for rank in mine) == 1
        assert {name for rank in mine for name in rank["gradients"]} == set(expected["gradients"])
        for rank in mine:
            for name, grad in rank["gradients"].items():
                torch.testing.assert_close(grad, expected["gradients"][name], rtol=0, atol=1e-9 * loose * largest)
            for name, buffer in rank["buffers"].items():
                torch.testing.assert_close(buffer, expected["buffers"][name], rtol=1e-10 * loose, atol=1e-10 * loose)
    labels = {number: found for rank in ranks for number, found in rank["labels"].items()}
    assert sorted(labels) == list(range(len(case.data_shapes)))
    if case.precision == "float64":
        for number, whole in enumerate(expected["labels"]):
            assert torch.equal(labels[number], whole)
    # Gathered on the first rank: every parameter and buffer, once.
    assert set(ranks[0]["state"]) >= {*expected["gradients"], *expected["buffers"]}
    assert not any(rank["state"] for rank in ranks[1:])

"""Joining a group of processes; a group of one needs no launcher."""

import contextlib

import pytest
import torch

from lampseg.parallel.world import join, leave, membership


def test_a_world_of_one_is_first() -> None:
    world = join(device="cpu", timeout=30)
    assert (world.rank, world.size, world.first) == (0, 1, True)
    assert world.gather("mine") == ["mine"]
    assert world.broadcast({"a": 1}) == {"a": 1}
    leave()


def test_denormal_numbers_are_flushed_to_zero() -> None:
    """A trained network is sure of most voxels; its gradients there are denormal, which CPUs compute slowly.

    In training, the busy time of the last rank was 4 to 5 s a step before this, and 0.5 s after.
    """
    torch.set_flush_denormal(False)
    assert float(torch.full((8,), 1e-30) @ torch.full((8,), 1e-10)) > 0
    join(device="cpu", timeout=30)
    assert float(torch.full((8,), 1e-30) @ torch.full((8,), 1e-10)) == 0
    leave()
    torch.set_flush_denormal(False)


@pytest.mark.parametrize("before", [True, False])
def test_leaving_restores_how_denormal_numbers_are_treated(before: bool) -> None:
    """`predict` on one device, then `evaluate` in the same process: scipy's KDTree overflowed the stack."""
    torch.set_flush_denormal(before)
    try:
        for fails in (False, True):
            with contextlib.suppress(KeyError), membership(device="cpu", timeout=30):
                assert float(torch.full((8,), 1e-30) @ torch.full((8,), 1e-10)) == 0
                if fails:
                    raise KeyError
            assert (float(torch.full((8,), 1e-30) @ torch.full((8,), 1e-10)) == 0) == before
    finally:
        torch.set_flush_denormal(False)

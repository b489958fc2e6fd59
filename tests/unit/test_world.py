"""Joining a group of processes; a group of one needs no launcher."""

import contextlib

import pytest
import torch

from lampseg.denormals import denormals
from lampseg.parallel.world import join, leave, membership


def test_a_world_of_one_is_first() -> None:
    world = join(device="cpu", timeout=30)
    assert (world.rank, world.size, world.first) == (0, 1, True)
    assert world.gather("mine") == ["mine"]
    assert world.broadcast({"a": 1}) == {"a": 1}
    leave()


def flushed() -> bool:
    return float(torch.full((8,), 1e-30) @ torch.full((8,), 1e-10)) == 0


@pytest.mark.parametrize("before", [True, False])
def test_denormal_numbers_are_flushed_to_zero_between_joining_and_leaving(before: bool) -> None:
    """A trained network is sure of most voxels; its gradients there are denormal, which CPUs compute slowly.

    In training, the busy time of the last rank was 4 to 5 s a step before this, and 0.5 s after. Left so, `evaluate` in
    the same process crashed: scipy's KDTree overflowed the stack.
    """
    with denormals(flushed=before):
        for fails in (False, True):
            with contextlib.suppress(KeyError), membership(device="cpu", timeout=30):
                assert flushed()
                if fails:
                    raise KeyError
            assert flushed() == before
    assert not flushed()

"""Randomness that depends on the operation, not on the device: dropout is the same on one device and on many.

Every random operation of a forward pass is seeded by (seed of the micro-batch, number of the operation). So the masks
do not depend on how the network is split, and a recomputed segment draws the same ones without saved generator states.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import torch

from lampseg.recording.random_operations import is_random

__all__ = ["is_random", "mix", "seeded"]


def mix(*numbers: int) -> int:
    """A seed from several numbers, the same on every machine."""
    digest = hashlib.sha256(",".join(str(number) for number in numbers).encode()).digest()
    return int.from_bytes(digest[:7], "big")


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Runs its body with generators seeded by `seed`; the generators are as before afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield

"""A network on a device of little memory: its activations are counted, and too many raise what torch does."""

import os
import weakref

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

ROOM = 5 * 2**20
"""Bytes that the activations of one worker process may take."""


class Hungry(nn.Module):
    """Twelve convolutions at full resolution; recompute saves most of what they keep."""

    def __init__(self, in_channels: int, out_channels: int, filters: int = 12) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv3d(in_channels, filters, 3, padding=1)]
        for _ in range(11):
            layers += [nn.Tanh(), nn.Conv3d(filters, filters, 3, padding=1)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Conv3d(filters, out_channels, 1)
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.body:
            x = layer(x)
            self._count(x)
        out: Tensor = self.head(torch.relu(x))
        return out

    def _count(self, x: Tensor) -> None:
        with torch._C.DisableTorchFunction():
            if "RANK" not in os.environ or isinstance(x, FakeTensor) or x.is_meta:
                return
            storage = x.untyped_storage()
            self._alive[id(storage)] = weakref.ref(storage)
        held = [found for reference in self._alive.values() if (found := reference()) is not None]
        self._alive = {id(storage): weakref.ref(storage) for storage in held}
        total = sum(storage.nbytes() for storage in held)
        if total > ROOM:
            raise torch.OutOfMemoryError(
                f"device out of memory: {total} bytes of activations, there is room for {ROOM}"
            )

"""Whole volumes as the network takes them: filled up with zeros to multiples of its stride."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def padded_shape(shape: Sequence[int], stride: Sequence[int], *, channels: int) -> tuple[int, ...]:
    """(1, C, X, Y, Z) of a volume padded at its ends to multiples of the network's stride."""
    return (1, channels, *(-(-size // step) * step for size, step in zip(shape, stride)))


def pad_volume(
    volume: np.ndarray,
    shape: tuple[int, ...],
    *,
    device: torch.device,
    dtype: torch.dtype,
    region: tuple[slice, ...] | None = None,
) -> Tensor:
    """The volume (C, X, Y, Z) in the corner of zeros of `shape` (1, C, X', Y', Z'); or a region of that."""
    region = region or tuple(slice(0, size) for size in shape[2:])
    x = torch.zeros((*shape[:2], *(part.stop - part.start for part in region)), dtype=dtype, device=device)
    inside = volume[:, *region]  # only these pages are read
    _, a, b, c = inside.shape
    x[0, :, :a, :b, :c] = torch.from_numpy(np.array(inside)).to(device, dtype)
    return x

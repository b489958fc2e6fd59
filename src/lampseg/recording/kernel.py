"""A kernel call: what one low-level operation computes and moves, and of which kind it is. Times follow from it."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "convolution", "transposed_convolution", "matmul", "norm", "pool", "resample", "pointwise", "message", "collective"
]
"""Kinds that reach different fractions of a device's peak. `pointwise` is everything else: limited by memory speed.
`message` and `collective` are what ranks send each other within an operation: halos, and sums over ranks."""


@dataclass(frozen=True)
class Kernel:
    """One kernel that runs under one operation, forward or backward."""

    name: str
    """Of the ATen operator, such as `convolution_backward`."""
    kind: Kind
    flops: float
    """Multiplications and additions, by PyTorch's own formulas; 0 where those count nothing."""
    nbytes: int
    """Read and written: the tensors it takes and returns."""
    channels: tuple[int, int] = (0, 0)
    """Input and output channels of one group of a convolution, inner and outer size of a matmul; else zeros."""
    voxels: int = 0
    """Batch times spatial size of a convolution's output (of its input if it is transposed); else the elements of
    the largest tensor. Of messages and collectives, how many there are."""
    taps: int = 1
    """Positions of a convolution's kernel, such as 27. Of a collective, its ranks."""
    backward: bool = False
    fallback: bool = False
    """A convolution that PyTorch runs on a CPU by its slow path (`fallback.falls_back`)."""

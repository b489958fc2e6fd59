"""Which convolutions PyTorch runs by its slow path on a CPU: unfold, then multiply; often ten times slower."""

from typing import Any

import torch
from torch import Tensor


def falls_back(input: Tensor, weight: Tensor, *, options: tuple[Any, ...]) -> bool:
    """Asks PyTorch itself, also on fake tensors: device, precision and the number of threads decide, too.

    In float32 it does so at batch 1 without groups if channels x the first two spatial sizes are at most 20480, and
    for kernels of one voxel in a process of one thread; in float64 always; in bfloat16 not where the processor knows
    it (torch 2.11 to 2.13).

    Args:
        input: (N, C, *spatial).
        options: stride, padding, dilation, transposed, output_padding and groups, as `aten.convolution` takes them.
    """
    if input.device.type != "cpu":
        return False
    return "Slow" in str(torch._C._select_conv_backend(input, weight, None, *options, None))

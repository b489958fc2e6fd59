"""Which convolutions PyTorch runs by its slow path on a CPU: unfold, then multiply; often ten times slower."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def falls_back(
    input: Tensor,
    weight: Tensor,
    *,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> bool:
    """Asks PyTorch itself, also on fake tensors: their device and number of threads decide, too.

    In float32 it does so at batch 1 without groups if channels x the first two spatial sizes are at most 20480, and
    for kernels of one voxel in a process of one thread; in float64 always; in bfloat16 never (torch 2.11 to 2.13).

    Args:
        input: (N, C, *spatial), as are the other arguments those of `aten.convolution`.
    """
    if input.device.type != "cpu":
        return False
    options: list[Any] = [list(stride), list(padding), list(dilation), transposed, list(output_padding), groups, None]
    return "Slow" in str(torch._C._select_conv_backend(input, weight, None, *options))

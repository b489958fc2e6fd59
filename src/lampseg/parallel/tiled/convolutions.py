"""Convolutions of units: what a call asks for, with the padding along the dimension that is cut taken out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lampseg.parallel.spatial.convolution import Arguments
from lampseg.parallel.tiled.planes import Reach

_DIMS: Mapping[Any, int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True)
class Convolution:
    """One call."""

    weight: Tensor
    bias: Tensor | None
    reach: Reach
    args: Arguments
    """Of the convolution of a tile, to whose planes the zeros around the volume have been added."""

    @property
    def pointwise(self) -> bool:
        """Whether an output depends on the voxel at its place alone."""
        args = self.args
        kernel, padding = self.weight.shape[2:], (self.reach.padding, *args.padding)
        return set(kernel) == {1} and set(args.stride) == {1} and not any(padding)


def convolution_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Convolution | None:
    """The convolution that a call is; None: it is none that is known here."""
    dims = _DIMS.get(func)
    if dims is None or len(args) > len(_ARGUMENTS):
        return None
    given = {**dict(zip(_ARGUMENTS, args)), **kwargs}
    weight, bias, groups = given["weight"], given.get("bias"), given.get("groups", 1)
    stride, dilation = (_each(given.get(name, 1), dims) for name in ("stride", "dilation"))
    kernel = tuple(weight.shape[2:])
    padding = given.get("padding", 0)
    if padding == "valid":
        padding = 0
    elif padding == "same":
        if any(d * (k - 1) % 2 for d, k in zip(dilation, kernel)):
            return None  # one plane more on one side
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel))
    around = _each(padding, dims)
    if weight.dim() != dims + 2 or around[0] > dilation[0] * (kernel[0] - 1):
        return None
    asked = Arguments(stride, around, dilation, False, (0,) * dims, groups)
    within = replace(asked, padding=(0, *around[1:]))
    return Convolution(weight, bias, Reach(kernel[0], stride[0], around[0], dilation[0]), within)


def _each(value: Any, dims: int) -> tuple[int, ...]:
    found = (value,) if isinstance(value, int) else tuple(int(n) for n in value)
    return found * dims if len(found) == 1 else found

"""Which kernel a call of an ATen operator is: its kind, its numbers, the sizes that decide how fast it runs."""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from lampseg.hardware.fallback import falls_back
from lampseg.recording.kernel import Kernel, Kind

_aten = torch.ops.aten
_CONVOLUTIONS = {"convolution": 0, "convolution_overrideable": 0, "_convolution": 0, "convolution_backward": 1}
"""The position of the input; the weight follows it, and `transposed` comes six after it."""
_MATMULS = {"mm": 0, "bmm": 0, "_scaled_mm": 0, "addmm": 1, "baddbmm": 1}
"""The position of the left matrix; the right one follows it."""
_MOVES_NOTHING = frozenset(
    {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "_reshape_alias"}
)
"""Operators that only allocate, or look at memory in another way, without being marked as views."""
_FILLS = frozenset({"zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"})
"""Operators that take a tensor for its type only."""
# PyTorch has formulas for its CUDA attention kernels only; the CPU's take the same arguments in the same places.
_SAME_FORMULA = {
    "_scaled_dot_product_flash_attention_for_cpu": _aten._scaled_dot_product_flash_attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": _aten._scaled_dot_product_flash_attention_backward,
}


def kernel_of(
    packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, *, tensors: list[Tensor], backward: bool
) -> Kernel:
    """The kernel that a call is.

    Args:
        packet: the operator, such as `torch.ops.aten.convolution`.
        args, kwargs, out: of the call.
        tensors: all that it takes and returns.
        backward: whether autograd's backward made the call.
    """
    name = packet.__name__
    kind = kind_of(name)
    moved = () if name in _MOVES_NOTHING else (out,) if name in _FILLS else tensors
    nbytes = sum(t.numel() * t.element_size() for t in moved)
    if name in _CONVOLUTIONS:
        return _convolution(packet, args, kwargs, out, nbytes, backward)
    channels = (0, 0)
    if kind == "matmul":
        at = _MATMULS.get(name)
        if at is not None:
            channels = (args[at].shape[-1], args[at + 1].shape[-1])
        else:  # attention: the size of a head, and how many keys
            key = args[2 if name.endswith("backward") else 1]
            channels = (key.shape[-1], key.shape[-2])
    formula = flop_registry.get(_SAME_FORMULA.get(name, packet))
    flops = float(formula(*args, **kwargs, out_val=out)) if formula is not None else 0.0
    voxels = max(t.numel() for t in tensors)
    return Kernel(name, kind, flops, nbytes, channels, voxels, 1, backward)


@cache
def kind_of(name: str) -> Kind:
    """The kind of an ATen operator."""
    if name in _CONVOLUTIONS:
        return "convolution"
    if name in _MATMULS or "dot_product" in name or "_attention_" in name:
        return "matmul"
    if any(part in name for part in ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm")):
        return "norm"
    if "pool" in name:
        return "pool"
    if "upsample" in name or "grid_sampler" in name:
        return "resample"
    return "pointwise"


def _convolution(
    packet: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any, nbytes: int, backward: bool
) -> Kernel:
    name = packet.__name__
    at = _CONVOLUTIONS[name]
    x, weight, transposed, groups = args[at], args[at + 1], args[at + 6], args[at + 8]
    result = args[0] if at else out
    if transposed:
        channels = (weight.shape[0] // groups, weight.shape[1])
        sites = x
    else:
        channels = (weight.shape[1], weight.shape[0] // groups)
        sites = result
    voxels, taps = sites.shape[0] * math.prod(sites.shape[2:]), math.prod(weight.shape[2:])
    if at:
        # Each gradient (of the input, of the weight) takes as much as the forward. PyTorch's formula says the same,
        # but forgets that a group's weight sees only the channels of its group.
        flops = float(2 * voxels * taps * math.prod(channels) * groups * sum(args[10][:2]))
    else:
        flops = float(flop_registry[packet](*args, **kwargs, out_val=out))
    kind: Kind = "transposed_convolution" if transposed else "convolution"
    slow = falls_back(x, weight, options=args[at + 3 : at + 9])
    return Kernel(name, kind, flops, nbytes, channels, voxels, taps, backward, slow)

"""Functions of each element by itself: activations, arithmetic, comparisons, copies, random masks."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from lampseg.parallel.spatial.layout import is_constant, layout_of, mark_constant
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.parallel.spatial.register import exact, forms, operators
from lampseg.parallel.spatial.rules.align import common_layout, fit, fit_all
from lampseg.recording.recorder import function_name

# fmt: off
_ONE = forms(
    "abs", "absolute", "neg", "negative", "positive", "sign", "exp", "exp2", "expm1", "log", "log2", "log10", "log1p",
    "sqrt", "rsqrt", "square", "reciprocal", "sin", "cos", "tanh", "sigmoid", "logit", "erf", "ceil", "floor", "round",
    "trunc", "clamp", "clip", "clamp_min", "clamp_max", "nan_to_num", "isnan", "isinf", "isfinite", "logical_not",
    "bitwise_not", "relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "softsign",
    "hardtanh", "hardsigmoid", "hardswish", "hardshrink", "softshrink", "tanhshrink", "threshold", "logsigmoid",
)
_MANY = forms(
    "add", "sub", "subtract", "mul", "multiply", "div", "divide", "true_divide", "pow", "fmod", "remainder",
    "floor_divide", "maximum", "minimum", "where", "lerp", "addcmul", "addcdiv", "eq", "ne", "lt", "le", "gt", "ge",
    "logical_and", "logical_or", "logical_xor", "bitwise_and", "bitwise_or", "bitwise_xor", "masked_fill", "xlogy",
    "copy", "rsub",
)
_OPERATORS = operators(
    "add", "sub", "mul", "truediv", "div", "floordiv", "pow", "mod", "neg", "pos", "abs", "invert", "and", "or", "xor",
    "eq", "ne", "lt", "le", "gt", "ge",
)
_COPIES = forms(
    "clone", "contiguous", "detach", "to", "type", "type_as", "float", "double", "half", "bfloat16", "int", "long",
    "bool", "short", "char", "byte", "cpu", "cuda", "zeros_like", "ones_like", "full_like", "empty_like", "alias",
)
# fmt: on
_SELF = forms("fill", "zero", "requires_grad", places=(Tensor,))
_DATA = [Tensor.data.__get__]  # type: ignore[attr-defined]
_RANDOM = forms("bernoulli", "rand_like", "randn_like", "uniform", "normal")
_DROPOUT = forms("dropout", places=(torch, F))
_CHANNELS: list[Callable[..., Any]] = [F.dropout1d, F.dropout2d, F.dropout3d, torch.feature_dropout]


@exact(*dict.fromkeys([*_ONE, *_MANY, *_OPERATORS, *_COPIES, *_SELF, *_DATA]))
def elementwise(mode: SpatialParallel, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Every operand is brought to the layout of the result."""
    if kwargs.get("out") is not None:
        raise mode.refuse(func, "it writes to `out`", remedy="assign its result")
    leaves, tree = tree_flatten((args, kwargs))
    at = [n for n, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]
    target = leaves[at[0]] if writes(func) else None
    if func in _TYPES_ONLY:
        at = at[:1]
        if not layout_of(leaves[0]):
            return func(*args, **kwargs)
    if target is None:
        fitted, layout = fit_all(mode, func, [leaves[n] for n in at])
    else:
        fitted, layout = _in_place(mode, func, [leaves[n] for n in at])
    for n, tensor in zip(at, fitted, strict=True):
        leaves[n] = tensor
    args, kwargs = tree_unflatten(leaves, tree)
    out = func(*args, **kwargs)
    return mode.marked(out, layout) if isinstance(out, Tensor) else out


_TYPES_ONLY = set(forms("type_as"))


def writes(func: Callable[..., Any]) -> bool:
    """Whether a function writes to its first argument."""
    name = function_name(func)
    return (name.endswith("_") and not name.endswith("__")) or (name.startswith("__i") and name != "__invert__")


def _in_place(mode: SpatialParallel, func: Callable[..., Any], tensors: list[Tensor]) -> Any:
    """What is written to keeps its layout; a constant that a slab is written to becomes one."""
    target = tensors[0]
    layout = layout_of(target)
    wanted = common_layout(mode, func, tensors, rank=target.dim())
    if {shard.axis for shard in wanted} != {shard.axis for shard in layout}:
        if not is_constant(target) or layout:
            raise mode.refuse(func, "it writes a slab into a tensor that every rank has all of")
        layout = wanted
    rest = [fit(mode, func, tensor, layout, rank=target.dim()) for tensor in tensors[1:]]
    return [target, *rest], layout


@exact(*forms("new_zeros", "new_ones", "new_full", "new_empty", places=(Tensor,)))
def constants(mode: SpatialParallel, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """One number everywhere, of any shape."""
    return mark_constant(func(*args, **kwargs))


@exact(*_RANDOM)
def random_numbers(mode: SpatialParallel, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Every rank draws its own for its slab."""
    layout = layout_of(args[0])
    return mode.marked(mode.random_call(func, args, kwargs, layout=layout, device=args[0].device), layout)


@exact(*_DROPOUT)
def dropout(mode: SpatialParallel, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Every rank draws its slab's mask."""
    if not _training(args, kwargs):
        return mode.marked(func(*args, **kwargs), layout_of(args[0]))
    return random_numbers(mode, func, args, kwargs)


@exact(*_CHANNELS)
def channel_dropout(mode: SpatialParallel, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A channel is dropped on all ranks or on none: the mask is drawn like that of a replica."""
    if not _training(args, kwargs):
        return mode.marked(func(*args, **kwargs), layout_of(args[0]))
    layout = layout_of(args[0])
    if any(shard.dim < 2 for shard in layout):
        raise mode.refuse(func, "its slabs are cut along the channels")
    out = mode.random_call(func, args, kwargs, layout=(), device=args[0].device)
    return mode.marked(out, layout)


def _training(args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("training", args[2] if len(args) > 2 else True))


@exact(F.prelu, torch.prelu, Tensor.prelu)
def prelu(mode: SpatialParallel, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Its weight belongs to the channels, not to the last dimension."""
    x = args[0]
    if any(layout_of(weight) for weight in (*args[1:], *kwargs.values()) if isinstance(weight, Tensor)):
        raise mode.refuse(func, "its weight is a slab")
    return mode.marked(func(*args, **kwargs), layout_of(x))

"""Functions with a window: convolutions, transposed convolutions, pooling. They exchange halos first."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lampseg.parallel.spatial.collectives import planes_of
from lampseg.parallel.spatial.convolution import Arguments, convolve
from lampseg.parallel.spatial.ends import Halo
from lampseg.parallel.spatial.layout import Shard, layout_of
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.parallel.spatial.register import exact
from lampseg.parallel.spatial.window import Spread, Window, some_empty, spans

Function = Callable[..., Any]

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_MAX_POOL = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_AVG_POOL = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def _named(names: Sequence[str], args: Any, kwargs: Any) -> dict[str, Any]:
    return {**dict(zip(names, args)), **kwargs}


def _each(value: Any, dims: int) -> list[int]:
    each: list[int] = list(value) if isinstance(value, tuple | list) else [value]
    return each * dims if len(each) == 1 else each


def _cast(x: Tensor, *tensors: Any) -> list[Any]:
    """As autocast does before a convolution; then the halo travels in the activation's type."""
    if not torch.is_autocast_enabled(x.device.type):
        return [x, *tensors]
    dtype = torch.get_autocast_dtype(x.device.type)
    return [each.to(dtype) if isinstance(each, Tensor) and each.is_floating_point() else each for each in (x, *tensors)]


def _spatial(mode: SpatialParallel, func: Function, x: Tensor) -> list[Shard]:
    for shard in layout_of(x):
        if shard.dim < 2 or shard.merged:
            raise mode.refuse(func, "its input is cut along samples, channels or flattened voxels")
    return list(layout_of(x))


def _slabs_possible(
    mode: SpatialParallel, x: Tensor, shards: list[Shard], windows: list[Any]
) -> tuple[Tensor, list[Shard]]:
    """Where a rank would get no output, the axis' slabs are put together first: every rank computes this level."""
    remaining = []
    for shard in shards:
        if some_empty(windows[shard.dim - 2].edges(shard.edges)):
            x = mode.gathered(x, shard)
        else:
            remaining.append(shard)
    return x, remaining


@exact(F.conv1d, F.conv2d, F.conv3d)
def convolution(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Stride, dilation, groups, any kernel; zero padding."""
    given = _named(_CONV, args, kwargs)
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    _parameters_whole(mode, func, weight, bias)
    shards, dims = _spatial(mode, func, x), weight.dim() - 2
    stride, dilation = _each(given.get("stride", 1), dims), _each(given.get("dilation", 1), dims)
    padding = _padding(mode, func, given.get("padding", 0), weight, dilation)
    windows = [Window(weight.shape[2 + n], stride[n], padding[n], dilation[n]) for n in range(dims)]
    x, shards = _slabs_possible(mode, x, shards, windows)
    x, weight, bias = _cast(x, weight, bias)
    halos, layout = [], []
    for shard in shards:
        window = windows[shard.dim - 2]
        edges = window.edges(shard.edges)
        needs = tuple(window.need(span) for span in spans(edges))
        layout.append(Shard(shard.axis, shard.dim, edges))
        if list(needs) != spans(shard.edges):
            halos.append(Halo(mode.axes[shard.axis], shard.dim, shard.edges, needs))
            padding[shard.dim - 2] = 0
    arguments = Arguments(tuple(stride), tuple(padding), tuple(dilation), False, (0,) * dims, given.get("groups", 1))
    with torch.autocast(x.device.type, enabled=False):
        overlapped = bool(halos) and mode.overlapped(x, halos[-1].dim, weight)
        out = convolve(x, weight, bias, halos=halos, args=arguments, overlapped=overlapped)
    return mode.marked(out, layout)


def _padding(mode: SpatialParallel, func: Function, given: Any, weight: Tensor, dilation: list[int]) -> list[int]:
    dims = weight.dim() - 2
    if given == "valid":
        return [0] * dims
    if given != "same":
        return _each(given, dims)
    reaches = [dilation[n] * (weight.shape[2 + n] - 1) for n in range(dims)]
    if any(reach % 2 for reach in reaches):
        raise mode.refuse(func, "padding `same` of an even kernel is uneven", remedy="use an odd kernel")
    return [reach // 2 for reach in reaches]


@exact(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
def transposed_convolution(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """A slab of the output reads a few planes more of the input; what is computed beyond it is cut off."""
    given = _named(_TRANSPOSED, args, kwargs)
    x, weight, bias = given["input"], given["weight"], given.get("bias")
    _parameters_whole(mode, func, weight, bias)
    shards, dims = _spatial(mode, func, x), weight.dim() - 2
    stride, padding, extra, dilation = (
        _each(given.get(name, default), dims)
        for name, default in (("stride", 1), ("padding", 0), ("output_padding", 0), ("dilation", 1))
    )
    windows = [Spread(weight.shape[2 + n], stride[n], padding[n], extra[n], dilation[n]) for n in range(dims)]
    x, shards = _slabs_possible(mode, x, shards, windows)
    x, weight, bias = _cast(x, weight, bias)
    halos, layout, crops = [], [], []
    for shard in shards:
        axis, n = mode.axes[shard.axis], shard.dim - 2
        window = windows[n]
        edges = window.edges(shard.edges)
        needs = tuple(window.need(span, shard.total) for span in spans(edges))
        layout.append(Shard(shard.axis, shard.dim, edges))
        if list(needs) != spans(shard.edges):
            halos.append(Halo(axis, shard.dim, shard.edges, needs))
        first, last = edges[axis.rank], edges[axis.rank + 1]
        begin = needs[axis.rank][0] * stride[n] - padding[n]
        made = (needs[axis.rank][1] - needs[axis.rank][0] - 1) * stride[n] + window.reach + 1
        padding[n], extra[n] = 0, max(0, last - begin - made)
        crops.append((shard.dim, first - begin, last - first))
    arguments = Arguments(tuple(stride), tuple(padding), tuple(dilation), True, tuple(extra), given.get("groups", 1))
    with torch.autocast(x.device.type, enabled=False):
        out = convolve(x, weight, bias, halos=halos, args=arguments, overlapped=False)
    for dim, first, count in crops:
        if out.shape[dim] != count:
            out = out.narrow(dim, first, count)
    return mode.cut_again(mode.marked(out, layout))


def _parameters_whole(mode: SpatialParallel, func: Function, *tensors: Any) -> None:
    if any(isinstance(tensor, Tensor) and layout_of(tensor) for tensor in tensors):
        raise mode.refuse(func, "its kernel is a slab")


@exact(F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d)
def max_pool(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Beyond the volume there is nothing that could be the largest."""
    given = _named(_MAX_POOL, args, kwargs)
    if given.get("return_indices"):
        raise mode.refuse(func, "indices count voxels of the whole", remedy="pool without return_indices")
    return _pool(mode, func, given, fill=float("-inf"))


@exact(F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
def avg_pool(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Beyond the volume there are zeros, which count."""
    given = _named(_AVG_POOL, args, kwargs)
    dims = given["input"].dim() - 2
    if any(_each(given.get("padding", 0), dims)) and not given.get("count_include_pad", True):
        raise mode.refuse(func, "padding that does not count is not known to it", remedy="use count_include_pad=True")
    return _pool(mode, func, given, fill=0.0)


def _pool(mode: SpatialParallel, func: Function, given: dict[str, Any], *, fill: float) -> Tensor:
    x = given["input"]
    dims = x.dim() - 2
    shards = _spatial(mode, func, x)
    kernel = _each(given["kernel_size"], dims)
    stride = _each(given["stride"], dims) if given.get("stride") not in (None, [], ()) else list(kernel)
    padding, dilation = _each(given.get("padding", 0), dims), _each(given.get("dilation", 1), dims)
    windows = [Window(kernel[n], stride[n], padding[n], dilation[n]) for n in range(dims)]
    if given.get("ceil_mode"):
        totals = [next((s.total for s in shards if s.dim == n + 2), x.shape[n + 2]) for n in range(dims)]
        if any((totals[n] + 2 * padding[n] - windows[n].reach - 1) % stride[n] for n in range(dims)):
            raise mode.refuse(
                func, "with ceil_mode a window reaches beyond the volume", remedy="use a multiple of the stride"
            )
    x, shards = _slabs_possible(mode, x, shards, windows)
    layout = []
    for shard in shards:
        window = windows[shard.dim - 2]
        edges = window.edges(shard.edges)
        needs = [window.need(span) for span in spans(edges)]
        if needs != spans(shard.edges):
            x = planes_of(x, mode.axes[shard.axis], shard.dim, shard.edges, needs, fill)
            padding[shard.dim - 2] = 0
        layout.append(Shard(shard.axis, shard.dim, edges))
    rest = {key: value for key, value in given.items() if key not in ("input", "kernel_size", "stride", "padding")}
    return mode.marked(func(x, kernel, stride, padding, **rest), layout)

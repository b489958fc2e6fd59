"""Norms: the statistics are those of the whole volume, and so are running ones."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lampseg.parallel.spatial.layout import layout_of
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.parallel.spatial.norm import Reduction, Statistics, alone, normalise, over_groups, over_samples
from lampseg.parallel.spatial.register import exact

Function = Callable[..., Any]

_INSTANCE = ("input", "running_mean", "running_var", "weight", "bias", "use_input_stats", "momentum", "eps")
_BATCH = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_GROUP = ("input", "num_groups", "weight", "bias", "eps")


@exact(F.instance_norm)  # torch.instance_norm takes its arguments in another order
def instance_norm(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Over the voxels of each channel of each sample."""
    given = {**dict(zip(_INSTANCE, args)), **kwargs}
    if not given.get("use_input_stats", True):
        return mode.marked(func(*args, **kwargs), layout_of(given["input"]))
    out, found = _normalised(mode, func, given, alone)
    mean = found.mean.mean(0)
    variance = (found.deviations / (found.count - 1)).mean(0)
    _update(given, mean, variance)
    return out


@exact(F.batch_norm)
def batch_norm(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Over the voxels of each channel of all samples."""
    given = {**dict(zip(_BATCH, args)), **kwargs}
    if not given.get("training", False):
        return mode.marked(func(*args, **kwargs), layout_of(given["input"]))
    out, found = _normalised(mode, func, given, over_samples)
    _update(given, found.mean[0], found.deviations[0] / (found.count[0] - 1))
    return out


@exact(F.group_norm, torch.group_norm)
def group_norm(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Over the voxels of a group of channels."""
    given = {**dict(zip(_GROUP, args)), **kwargs}
    return _normalised(mode, func, given, over_groups(given["num_groups"]))[0]


def _normalised(
    mode: SpatialParallel, func: Function, given: dict[str, Any], reduce: Reduction
) -> tuple[Tensor, Statistics]:
    x, weight, bias = given["input"], given.get("weight"), given.get("bias")
    layout = layout_of(x)
    if any(shard.dim < 2 for shard in layout):
        raise mode.refuse(func, "its input is cut along samples or channels")
    if any(isinstance(each, Tensor) and layout_of(each) for each in (weight, bias)):
        raise mode.refuse(func, "its weight is a slab")
    axes = [mode.axes[shard.axis] for shard in layout]
    out, found = normalise(x, weight, bias, eps=given.get("eps", 1e-5), reduce=reduce, axes=axes)
    return mode.marked(out, layout), found


def _update(given: dict[str, Any], mean: Tensor, variance: Tensor) -> None:
    """The running statistics, as every rank computes them alike."""
    for name, value in (("running_mean", mean), ("running_var", variance)):
        buffer = given.get(name)
        if buffer is not None:
            momentum = given.get("momentum", 0.1)
            buffer.copy_(buffer * (1 - momentum) + value.to(buffer.dtype) * momentum)

"""Norms: the statistics are those of the whole volume, and so are running ones."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lampseg.parallel.spatial.layout import layout_of
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.parallel.spatial.norm import BATCH, INSTANCE, Cut, Sets, Statistics, normalise
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
    out, found = _normalised(mode, func, given, INSTANCE)
    _update(given, found, len(out))
    return out


@exact(F.batch_norm)
def batch_norm(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Over the voxels of each channel of all samples."""
    given = {**dict(zip(_BATCH, args)), **kwargs}
    if not given.get("training", False):
        return mode.marked(func(*args, **kwargs), layout_of(given["input"]))
    out, found = _normalised(mode, func, given, BATCH)
    _update(given, found, 1)
    return out


@exact(F.group_norm, torch.group_norm)
def group_norm(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Over the voxels of a group of channels."""
    given = {**dict(zip(_GROUP, args)), **kwargs}
    return _normalised(mode, func, given, Sets(groups=given["num_groups"]))[0]


def _normalised(mode: SpatialParallel, func: Function, given: dict[str, Any], sets: Sets) -> tuple[Tensor, Statistics]:
    x, weight, bias = given["input"], given.get("weight"), given.get("bias")
    layout = layout_of(x)
    if any(shard.dim < 2 for shard in layout):
        raise mode.refuse(func, "its input is cut along samples or channels")
    if any(isinstance(each, Tensor) and layout_of(each) for each in (weight, bias)):
        raise mode.refuse(func, "its weight is a slab")
    cuts = [Cut(mode.axes[shard.axis], tuple(b - a for a, b in pairwise(shard.edges))) for shard in layout]
    eps = given.get("eps", 1e-5)
    out, found = normalise(x, weight, bias, eps=eps, sets=sets, cuts=cuts, fused=mode.on_cuda(x))
    return mode.marked(out, layout), found


def _update(given: dict[str, Any], found: Statistics, samples: int) -> None:
    """The running statistics, as every rank computes them alike: with the unbiased variance, the mean over samples."""
    unbiased = found.count / (found.count - 1) if found.count > 1 else math.nan
    for name in ("running_mean", "running_var"):
        buffer = given.get(name)
        if buffer is not None:
            value = found.mean if name == "running_mean" else found.variance() * unbiased
            value = value.view(samples, -1).mean(0) if samples > 1 else value
            buffer.lerp_(value.to(buffer.dtype), given.get("momentum", 0.1))

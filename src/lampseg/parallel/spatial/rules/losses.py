"""Losses: of each voxel on the slab, then summed or averaged over the whole."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lampseg.parallel.spatial.layout import layout_of
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.parallel.spatial.register import exact
from lampseg.parallel.spatial.rules.align import common_layout, fit_all
from lampseg.parallel.spatial.rules.reductions import reduce_sum

Function = Callable[..., Any]

_BY_VOXEL: dict[Function, tuple[str, ...]] = {
    F.mse_loss: ("input", "target", "size_average", "reduce", "reduction"),
    F.l1_loss: ("input", "target", "size_average", "reduce", "reduction"),
    F.smooth_l1_loss: ("input", "target", "size_average", "reduce", "reduction", "beta"),
    F.huber_loss: ("input", "target", "reduction", "delta"),
    F.binary_cross_entropy: ("input", "target", "weight", "size_average", "reduce", "reduction"),
    F.binary_cross_entropy_with_logits: (
        "input",
        "target",
        "weight",
        "size_average",
        "reduce",
        "reduction",
        "pos_weight",
    ),
}
_CLASSES = ("input", "target", "weight", "size_average", "ignore_index", "reduce", "reduction", "label_smoothing")


@exact(*_BY_VOXEL)
def by_voxel(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """A loss of one prediction and one target at each place."""
    given = {**dict(zip(_BY_VOXEL[func], args)), **kwargs}
    reduction = _reduction(mode, func, given)
    (x, target), layout = fit_all(mode, func, [given.pop("input"), given.pop("target")])
    rest = {key: value for key, value in given.items() if value is not None}
    if any(isinstance(value, Tensor) and (layout_of(value) or value.dim() > 1) for value in rest.values()):
        raise mode.refuse(func, "weights of voxels")
    out = mode.marked(func(x, target, reduction="none", **rest), layout)
    if reduction == "none":
        return out
    return reduce_sum(mode, out, list(range(out.dim())), mean=reduction == "mean")


@exact(F.cross_entropy, F.nll_loss)
def by_class(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Of classes: labels or, for cross entropy, probabilities. A mean is weighted as on one device."""
    names = _CLASSES if func is F.cross_entropy else _CLASSES[:-1]
    given = {**dict(zip(names, args)), **kwargs}
    reduction = _reduction(mode, func, given)
    x, target, weight = given.pop("input"), given.pop("target"), given.pop("weight", None)
    ignore, smoothing = given.pop("ignore_index", -100), given.pop("label_smoothing", 0.0)
    labels = target.dim() < x.dim()
    if smoothing and weight is not None:
        raise mode.refuse(func, "label_smoothing with class weights", remedy="leave one out")
    layout = common_layout(mode, func, [x], rank=x.dim())
    if any(shard.dim < 2 for shard in layout):
        raise mode.refuse(func, "it sums over a dimension that is cut into slabs")
    expected = [shard.at(shard.dim - labels) for shard in layout]
    if list(layout_of(target)) != expected:
        raise mode.refuse(func, "the target is not cut as the prediction is", remedy="shard both alike")
    options = {"ignore_index": ignore} if func is F.nll_loss else {"ignore_index": ignore, "label_smoothing": smoothing}
    out = mode.marked(func(x, target, weight=weight, reduction="none", **options), [s.at(s.dim - 1) for s in layout])
    everything = list(range(out.dim()))
    if reduction == "none":
        return out
    total = reduce_sum(mode, out, everything)
    if reduction == "sum":
        return total
    if not labels:
        return total / reduce_sum(mode, mode.marked(torch.ones_like(out), layout_of(out)), everything)
    counted = (target != ignore).to(total.dtype)
    if weight is not None:
        counted = counted * weight.to(total.dtype)[torch.where(target != ignore, target, torch.zeros_like(target))]
    return total / reduce_sum(mode, mode.marked(counted, expected), everything)


def _reduction(mode: SpatialParallel, func: Function, given: dict[str, Any]) -> str:
    if given.pop("size_average", None) is not None or given.pop("reduce", None) is not None:
        raise mode.refuse(func, "size_average and reduce", remedy="use reduction")
    return str(given.pop("reduction", "mean"))

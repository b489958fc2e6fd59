"""Reductions: sums and means over the whole; others only along dimensions that are not cut."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lampseg.parallel.spatial.collectives import sum_over
from lampseg.parallel.spatial.layout import Shard, layout_of
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.parallel.spatial.register import exact, forms

Function = Callable[..., Any]


@exact(torch.sum, Tensor.sum, torch.mean, Tensor.mean)
def sums(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """My slab's sum, and then the sum over the ranks; a mean divides by the voxels of the whole."""
    x, dims, keepdim = _dimensions(args, kwargs)
    mean = func in (torch.mean, Tensor.mean)
    return reduce_sum(mode, x, dims, keepdim=keepdim, mean=mean, dtype=kwargs.get("dtype"))


def reduce_sum(
    mode: SpatialParallel,
    x: Tensor,
    dims: Sequence[int],
    *,
    keepdim: bool = False,
    mean: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The sum or mean over dimensions of the whole."""
    layout = layout_of(x)
    cut = [shard for shard in layout if shard.dim in dims]
    result = dtype or (x.dtype if mean or x.is_floating_point() else torch.int64)
    low = result in (torch.bfloat16, torch.float16)  # the parts are added in float32, as within one device
    total = torch.sum(x, list(dims), keepdim=keepdim, dtype=torch.float32 if low else result)
    total = sum_over(total, [mode.axes[shard.axis] for shard in cut])
    if mean:
        total = total / _count(mode, x, dims, cut)
    total = total.to(result)
    rest = [shard for shard in layout if shard.dim not in dims]
    if not keepdim:
        rest = [shard.at(shard.dim - sum(dim < shard.dim for dim in dims)) for shard in rest]
    return mode.marked(total, rest)


@exact(torch.linalg.vector_norm)
def vector_norm(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """The root of a sum of powers over the whole."""
    given = {**dict(zip(("x", "ord", "dim", "keepdim"), args)), **kwargs}
    order = float(given.get("ord", 2))
    if not 1 <= order < float("inf"):
        raise mode.refuse(func, f"of order {order}", remedy="use order 1 or 2")
    x, dims, keepdim = _dimensions((given["x"], given.get("dim"), given.get("keepdim", False)), {})
    layout = layout_of(x)
    powers = mode.marked(x.abs() if order == 1 else x.abs().pow(order), layout)
    total = reduce_sum(mode, powers, dims, keepdim=keepdim, dtype=given.get("dtype"))
    if order == 1:
        return total
    # Of zeros the root has no slope: there it is taken as 0, as torch does.
    some = total > 0
    root = torch.where(some, total, torch.ones_like(total)).pow(1 / order)
    return mode.marked(torch.where(some, root, torch.zeros_like(root)), layout_of(total))


def _count(mode: SpatialParallel, x: Tensor, dims: Sequence[int], cut: Sequence[Shard]) -> int:
    """Elements of the whole that one mean is over."""
    count = 1
    for dim in dims:
        count *= x.shape[dim]
    for shard in cut:
        count = count // mode.local(shard) * shard.total
    return count


def _dimensions(args: Any, kwargs: Any) -> tuple[Tensor, list[int], bool]:
    x = args[0] if args else kwargs["input"]
    given = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    keepdim = bool(args[2] if len(args) > 2 else kwargs.get("keepdim", False))
    if given is None or (isinstance(given, tuple | list) and not given):
        return x, list(range(x.dim())), keepdim
    each = [given] if isinstance(given, int) else list(given)
    return x, sorted(dim % x.dim() for dim in each), keepdim


@exact(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
def adaptive_avg_pool(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """To one cell: the mean over the whole volume."""
    x = args[0]
    size = args[1] if len(args) > 1 else kwargs["output_size"]
    cells = list(size) if isinstance(size, tuple | list) else [size]
    if any(cell != 1 for cell in cells):
        raise mode.refuse(func, "to more than one cell", remedy="use a pooling with kernel and stride")
    dims = list(range(2, x.dim()))
    return reduce_sum(mode, x, dims, keepdim=True, mean=True)


_ALONG = forms(
    *("amax", "amin", "argmax", "argmin", "prod", "logsumexp", "var", "std", "var_mean", "all", "any", "max", "min"),
    places=(torch, Tensor),
)


@exact(*_ALONG)
def along(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Of each voxel, e.g. over its channels."""
    if len(args) > 1 and isinstance(args[1], Tensor):  # max(a, b), element by element
        from lampseg.parallel.spatial.rules.elementwise import elementwise

        return elementwise(mode, func, args, kwargs)
    x, dims, _ = _dimensions(args, kwargs)
    layout = layout_of(x)
    if any(shard.dim in dims for shard in layout):
        raise mode.refuse(
            func,
            "it reduces a dimension that is cut into slabs",
            remedy="use a sum or mean, or run this network with `parallel.mode: pipeline`",
        )
    out = func(*args, **kwargs)
    results = (out,) if isinstance(out, Tensor) else tuple(out)
    if results[0].dim() < x.dim():  # by the result: var and std have another argument where others have keepdim
        layout = tuple(shard.at(shard.dim - sum(dim < shard.dim for dim in dims)) for shard in layout)
    for each in results:
        mode.marked(each, layout)
    return out


@exact(*forms("softmax", "log_softmax", places=(torch, Tensor, F)), F.softmin)
def softmax(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Over the channels."""
    x = args[0] if args else kwargs["input"]
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    if dim is None or any(shard.dim == dim % x.dim() for shard in layout_of(x)):
        raise mode.refuse(func, "it normalises along a dimension that is cut into slabs")
    return mode.marked(func(*args, **kwargs), layout_of(x))

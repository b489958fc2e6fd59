"""Functions that look up or write by an index: one-hot, gather, scatter."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lampseg.parallel.spatial.layout import is_constant, layout_of
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.parallel.spatial.register import exact
from lampseg.parallel.spatial.rules.align import common_layout, fit
from lampseg.parallel.spatial.rules.shapes import uncut

Function = Callable[..., Any]


@exact(F.one_hot)
def one_hot(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """With the number of classes given: the largest label of a slab is not that of the whole."""
    if (args[1] if len(args) > 1 else kwargs.get("num_classes", -1)) < 1:
        raise mode.refuse(func, "it counts the classes", remedy="give num_classes")
    return mode.marked(func(*args, **kwargs), layout_of(args[0]))


@exact(torch.gather, Tensor.gather)
def gather(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """The index tells the shape of the result; the dimension that is looked up is not cut, or of a replica."""
    given = {**dict(zip(("input", "dim", "index"), args)), **kwargs}
    x, dim, index = given["input"], given["dim"], given["index"]
    dim = dim % x.dim()
    uncut(mode, func, layout_of(x), dim)
    layout = common_layout(mode, func, [x, index], rank=x.dim())
    index = fit(mode, func, index, layout, rank=x.dim())
    return mode.marked(func(fit(mode, func, x, layout, rank=x.dim(), skip=dim), dim, index), layout)


@exact(torch.scatter, Tensor.scatter, Tensor.scatter_)
def scatter(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Along a dimension that is not cut."""
    if len(args) > 4 or "reduce" in kwargs:
        raise mode.refuse(func, "with reduce")
    given = {**dict(zip(("input", "dim", "index", "value"), args)), **kwargs}
    x, dim, index, value = given["input"], given["dim"], given["index"], given.get("src", given.get("value"))
    dim = dim % x.dim()
    sources = [tensor for tensor in (x, index, value) if isinstance(tensor, Tensor) and tensor.dim()]
    layout = common_layout(mode, func, sources, rank=x.dim())
    uncut(mode, func, layout, dim)
    if not layout_of(x):
        if not is_constant(x) or any(x.shape[s.dim] != mode.local(s) for s in layout):
            raise mode.refuse(func, "it writes a slab into a tensor that every rank has all of")
        mode.marked(x, layout)
    index = fit(mode, func, index, layout, rank=x.dim(), skip=dim)
    if isinstance(value, Tensor) and value.dim():
        value = fit(mode, func, value, layout, rank=x.dim(), skip=dim)
    return mode.marked(func(x, dim, index, value), layout)

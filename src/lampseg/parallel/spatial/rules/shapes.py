"""Functions that change the shape: joined, split, indexed, permuted, flattened along dimensions that are not cut."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lampseg.parallel.spatial.layout import Layout, Shard, layout_of
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.parallel.spatial.register import exact
from lampseg.parallel.spatial.rules.align import common_layout, fit, fit_all

Function = Callable[..., Any]


@exact(torch.cat, torch.concat, torch.concatenate)
def cat(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Along a dimension that is not cut."""
    tensors = list(args[0] if args else kwargs["tensors"])
    rank = tensors[0].dim()
    dim = int(args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))) % rank
    layout = common_layout(mode, func, tensors, rank=rank)
    uncut(mode, func, layout, dim)
    for tensor in tensors:
        for shard in layout:
            if not layout_of(tensor) and tensor.shape[shard.dim] == 1 != shard.total:
                raise mode.refuse(func, "it joins tensors of different size")
    return mode.marked(func([fit(mode, func, t, layout, rank=rank, skip=dim) for t in tensors], dim), layout)


@exact(torch.stack)
def stack(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """A new dimension."""
    tensors = list(args[0] if args else kwargs["tensors"])
    dim = int(args[1] if len(args) > 1 else kwargs.get("dim", 0)) % (tensors[0].dim() + 1)
    fitted, layout = fit_all(mode, func, tensors)
    return mode.marked(func(fitted, dim), _inserted(layout, dim))


@exact(torch.split, Tensor.split, torch.chunk, Tensor.chunk, torch.unbind, Tensor.unbind)
def split(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Along a dimension that is not cut."""
    x, name = args[0], func.__name__
    at = 1 if name == "unbind" else 2
    dim = int(args[at] if len(args) > at else kwargs.get("dim", 0)) % x.dim()
    layout = layout_of(x)
    uncut(mode, func, layout, dim)
    layout = tuple(_removed(layout, dim)) if name == "unbind" else layout
    return tuple(mode.marked(part, layout) for part in func(*args, **kwargs))


@exact(torch.narrow, Tensor.narrow, torch.select, Tensor.select, torch.index_select, Tensor.index_select)
def narrow(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Of a dimension that is not cut."""
    x = args[0]
    dim = int(args[1] if len(args) > 1 else kwargs["dim"]) % x.dim()
    layout = layout_of(x)
    uncut(mode, func, layout, dim)
    return mode.marked(func(*args, **kwargs), _removed(layout, dim) if func.__name__ == "select" else layout)


@exact(Tensor.__getitem__)
def getitem(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Numbers and slices, where the dimensions that are cut are taken in full."""
    x, index = args
    layout = _indexed(mode, func, x, index)
    return mode.marked(func(x, index), layout)


@exact(Tensor.__setitem__)
def setitem(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """The same, written to a slab."""
    x, index, value = args
    if not layout_of(x):
        raise mode.refuse(func, "it writes a slab into a tensor that every rank has all of")
    inside = _indexed(mode, func, x, index)
    if isinstance(value, Tensor):
        rank = x[index].dim()
        common_layout(mode, func, [mode.marked(x[index], inside), value], rank=rank)
        if {shard.axis for shard in layout_of(value)} - {shard.axis for shard in inside}:
            raise mode.refuse(func, "it writes a slab into a tensor that every rank has all of")
        value = fit(mode, func, value, inside, rank=rank)
    func(x, index, value)


def _indexed(mode: SpatialParallel, func: Function, x: Tensor, index: Any) -> Layout:
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(not isinstance(part, int | slice | None | type(Ellipsis)) or isinstance(part, bool) for part in parts):
        raise mode.refuse(func, "it is indexed by a tensor or a list")
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    if Ellipsis in parts:
        at = parts.index(Ellipsis)
        parts[at : at + 1] = [slice(None)] * (x.dim() - taken)
    parts += [slice(None)] * (x.dim() - sum(part is not None for part in parts))
    layout, found = {shard.dim: shard for shard in layout_of(x)}, []
    source = target = 0
    for part in parts:
        if part is None:
            target += 1
            continue
        shard = layout.get(source)
        if shard is not None:
            if not isinstance(part, slice) or part.indices(x.shape[source]) != (0, x.shape[source], 1):
                raise mode.refuse(func, f"it takes a part of dimension {source}, which is cut into slabs")
            found += [each.at(target) for each in layout_of(x) if each.dim == source]
        source += 1
        target += isinstance(part, slice)
    return tuple(found)


@exact(torch.unsqueeze, Tensor.unsqueeze)
def unsqueeze(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """A new dimension."""
    x = args[0]
    dim = int(args[1] if len(args) > 1 else kwargs["dim"]) % (x.dim() + 1)
    return mode.marked(func(x, dim), _inserted(layout_of(x), dim))


@exact(torch.squeeze, Tensor.squeeze)
def squeeze(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Removes dimensions of size 1 that are not cut; a slab may have one plane."""
    x, layout = args[0], layout_of(args[0])
    cut = {shard.dim for shard in layout}
    given = args[1] if len(args) > 1 else kwargs.get("dim")
    dims = range(x.dim()) if given is None else [given] if isinstance(given, int) else given
    gone = sorted(d for d in {dim % x.dim() for dim in dims} if x.shape[d] == 1 and d not in cut)
    return mode.marked(func(x, tuple(gone)), [s.at(s.dim - sum(d < s.dim for d in gone)) for s in layout])


@exact(
    *(torch.permute, Tensor.permute, torch.transpose, Tensor.transpose, torch.swapaxes, Tensor.swapaxes),
    *(torch.movedim, Tensor.movedim, torch.moveaxis, Tensor.moveaxis),
)
def permute(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """The dimensions in another order."""
    x = args[0]
    # The same call on numbers instead of sizes: where did each dimension go?
    probe = func(torch.empty(tuple(range(x.dim())), device="meta"), *args[1:], **kwargs)
    order = list(probe.shape)
    return mode.marked(func(*args, **kwargs), [shard.at(order.index(shard.dim)) for shard in layout_of(x)])


@exact(torch.flatten, Tensor.flatten)
def flatten(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Several dimensions as one; if some are cut, the result may only be reduced and computed element by element."""
    x = args[0]
    first = int(args[1] if len(args) > 1 else kwargs.get("start_dim", 0)) % x.dim()
    last = int(args[2] if len(args) > 2 else kwargs.get("end_dim", -1)) % x.dim()
    return mode.marked(func(*args, **kwargs), _merged(mode, func, x, first, last))


@exact(
    *(Tensor.view, torch.reshape, Tensor.reshape),
    *(Tensor.view_as, Tensor.reshape_as),
)
def view(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Dimensions that are cut stay as they are, or are flattened with others."""
    x = args[0]
    out = func(*args, **kwargs)
    if out.dtype != x.dtype:  # view(dtype)
        raise mode.refuse(func, "it reads the bytes as another type")
    if out.shape == x.shape:
        return mode.marked(out, layout_of(x))
    found: list[Shard] = []
    for sources, targets in _groups(tuple(x.shape), tuple(out.shape)):
        cut = [shard for shard in layout_of(x) if shard.dim in sources]
        if not cut:
            continue
        if len(sources) == 1 and len(targets) == 1:
            found += [shard.at(targets[0]) for shard in cut]
        elif len(targets) == 1:
            merged = _merged(mode, func, x, sources[0], sources[-1])
            found += [replace(shard, dim=targets[0]) for shard in merged if shard.merged]
        else:
            raise mode.refuse(func, "it makes several dimensions of one that is cut into slabs")
    _not_ambiguous(mode, func, x, out)
    return mode.marked(out, found)


def _not_ambiguous(mode: SpatialParallel, func: Function, x: Tensor, out: Tensor) -> None:
    """A slab of one plane beside another dimension of size 1: which of the two did the network mean?"""
    cut = {shard.dim for shard in layout_of(x)}
    if any(x.shape[dim] == 1 for dim in cut):
        free = sum(size == 1 for dim, size in enumerate(x.shape) if dim not in cut)
        if free and free != sum(size == 1 for size in out.shape) - sum(x.shape[dim] == 1 for dim in cut):
            raise mode.refuse(func, "the slab has a single plane; use fewer ranks")


def _groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Which dimensions became which: runs of equal product, as short as possible."""
    groups: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        sources, targets = [], []
        if i < len(before):
            sources.append(i)
            i += 1
        if j < len(after):
            targets.append(j)
            j += 1
        while math.prod(before[n] for n in sources) != math.prod(after[n] for n in targets):
            if math.prod(before[n] for n in sources) < math.prod(after[n] for n in targets):
                sources.append(i)
                i += 1
            else:
                targets.append(j)
                j += 1
        groups.append((sources, targets))
    # Dimensions of size 1 that are left at an end belong to the run before.
    while len(groups) > 1 and (not groups[-1][0] or not groups[-1][1]):
        sources, targets = groups.pop()
        groups[-1] = (groups[-1][0] + sources, groups[-1][1] + targets)
    return groups


def _merged(mode: SpatialParallel, func: Function, x: Tensor, first: int, last: int) -> Layout:
    """The layout after dimensions `first` to `last` became one."""
    layout = layout_of(x)
    inside = {shard.dim: shard for shard in layout if first <= shard.dim <= last}
    if any(shard.merged for shard in inside.values()):
        raise mode.refuse(func, "the voxels were flattened before")
    sizes = tuple(inside[dim].total if dim in inside else x.shape[dim] for dim in range(first, last + 1))
    found = []
    for shard in layout:
        if shard.dim < first:
            found.append(shard)
        elif shard.dim > last:
            found.append(shard.at(shard.dim - (last - first)))
        elif first == last:
            found.append(shard)
        else:
            found.append(replace(shard, dim=first, merged=sizes, place=shard.dim - first))
    return tuple(found)


@exact(Tensor.expand, Tensor.expand_as, torch.broadcast_to, Tensor.broadcast_to)
def expand(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """A slab, to more samples or channels; or a replica, to the shape of a slab."""
    x = args[0]
    if func is Tensor.expand_as:
        rank = args[1].dim()
        layout = common_layout(mode, func, [x, args[1]], rank=rank)
        return mode.marked(func(fit(mode, func, x, layout, rank=rank), args[1]), layout)
    out = func(*args, **kwargs)
    return mode.marked(out, [shard.at(shard.dim + out.dim() - x.dim()) for shard in layout_of(x)])


@exact(Tensor.repeat, torch.tile, Tensor.tile)
def repeat(mode: SpatialParallel, func: Function, args: Any, kwargs: Any) -> Any:
    """Along dimensions that are not cut."""
    x = args[0]
    out = func(*args, **kwargs)
    layout = [shard.at(shard.dim + out.dim() - x.dim()) for shard in layout_of(x)]
    if any(out.shape[shard.dim] != mode.local(shard) for shard in layout):
        raise mode.refuse(func, "it repeats a dimension that is cut into slabs")
    return mode.marked(out, layout)


def uncut(mode: SpatialParallel, func: Function, layout: Layout, dim: int) -> None:
    if any(shard.dim == dim for shard in layout):
        raise mode.refuse(func, f"it works along dimension {dim}, which is cut into slabs")


def _inserted(layout: Layout, dim: int) -> list[Shard]:
    return [shard.at(shard.dim + (shard.dim >= dim)) for shard in layout]


def _removed(layout: Layout, dim: int) -> list[Shard]:
    return [shard.at(shard.dim - (shard.dim > dim)) for shard in layout]

"""The exchange of planes: every rank of an axis fetches the planes that it needs and others own, and back.

    rank 0 owns  0 1 2 3              needs 0 1 2 3 4      for a convolution of 3 planes
    rank 1 owns          4 5 6 7      needs       3 4 5 6 7 8
    rank 2 owns                  8 9  needs             7 8 9

One message for each pair of ranks, in the tensor's own dtype. Backward, the gradients of fetched planes go home and
are added there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from lampseg.parallel.spatial.parts import add_parts, empty_parts, parts_of

Span = tuple[int, int]
"""Planes first to last (not included), counted in the whole; may reach beyond it: such planes are filled."""


@dataclass
class Traffic:
    """What one rank sent."""

    halo_bytes: int = 0
    halo_messages: int = 0
    collective_bytes: int = 0
    collectives: int = 0


@dataclass(frozen=True)
class Axis:
    """One axis of the mesh, which cuts one spatial dimension, as this rank sees it."""

    number: int
    dim: int
    """Of the network's input, 2 for the first spatial one."""
    size: int
    """Ranks."""
    rank: int
    group: dist.ProcessGroup | None
    """None: a rehearsal, which sends nothing."""
    traffic: Traffic = field(default_factory=Traffic)

    @cached_property
    def others(self) -> tuple[int, ...]:
        return tuple(rank for rank in range(self.size) if rank != self.rank)

    def all_reduce(self, x: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
        """In place."""
        self.traffic.collective_bytes += x.numel() * x.element_size()
        self.traffic.collectives += 1
        if not _pretend(self, x):
            dist.all_reduce(x, op=op, group=self.group)

    def all_gather(self, x: Tensor) -> Tensor:
        """Everyone's tensor of one shape, stacked."""
        self.traffic.collective_bytes += x.numel() * x.element_size()
        self.traffic.collectives += 1
        parts = x.new_empty((self.size, *x.shape))
        if not _pretend(self, x):
            dist.all_gather(list(parts.unbind(0)), x.contiguous(), group=self.group)
        return parts


def _pretend(axis: Axis, x: Tensor) -> bool:
    return axis.group is None or isinstance(x, FakeTensor) or x.is_meta


@dataclass
class Fetch:
    """Planes on their way."""

    planes: list[tuple[int, Tensor]]
    """(First plane, buffer), in the order of the owners."""
    works: list[dist.Work]

    def wait(self) -> list[tuple[int, Tensor]]:
        """The planes, once they are here."""
        for work in self.works:
            work.wait()
        self.works.clear()
        return self.planes


def overlap(one: Span, other: Span) -> Span:
    """What two spans share; the end is before the begin if nothing."""
    return max(one[0], other[0]), min(one[1], other[1])


def fetch(x: Tensor, axis: Axis, dim: int, edges: Sequence[int], needs: Sequence[Span]) -> Fetch:
    """Begins to fetch what I need and do not own.

    Args:
        x: my planes, edges[rank] to edges[rank + 1].
        needs: of every rank.
    """
    own = edges[axis.rank], edges[axis.rank + 1]
    theirs = _some({other: overlap(needs[other], own) for other in axis.others})
    mine = _some({other: overlap(needs[axis.rank], (edges[other], edges[other + 1])) for other in axis.others})
    out = parts_of(x, dim, [(first - own[0], last - own[0]) for first, last in theirs.values()])
    into = empty_parts(x, dim, [last - first for first, last in mine.values()])
    works = _post(axis, dict(zip(theirs, out, strict=True)), dict(zip(mine, into, strict=True)))
    return Fetch([(first, planes) for (first, _), planes in zip(mine.values(), into)], works)


def send_home(grad: Tensor, axis: Axis, dim: int, edges: Sequence[int], needs: Sequence[Span]) -> Fetch:
    """Begins to send the gradients of fetched planes to their owners, and to receive those of mine.

    Args:
        grad: of the planes that I needed, needs[rank].
    """
    need = needs[axis.rank]
    fetched = _some({other: overlap(need, (edges[other], edges[other + 1])) for other in axis.others})
    parts = parts_of(grad, dim, [(first - need[0], last - need[0]) for first, last in fetched.values()])
    return send_parts_home(parts, grad, axis, dim, edges, needs)


def send_parts_home(
    parts: Sequence[Tensor], like: Tensor, axis: Axis, dim: int, edges: Sequence[int], needs: Sequence[Span]
) -> Fetch:
    """The same, of gradients of the fetched planes alone, in the order in which they were fetched.

    Args:
        like: a tensor of the same type and, but along `dim`, the same shape.
    """
    need = needs[axis.rank]
    own = edges[axis.rank], edges[axis.rank + 1]
    fetched = _some({other: overlap(need, (edges[other], edges[other + 1])) for other in axis.others})
    theirs = _some({other: overlap(needs[other], own) for other in axis.others})
    into = empty_parts(like, dim, [last - first for first, last in theirs.values()])
    works = _post(axis, dict(zip(fetched, parts, strict=True)), dict(zip(theirs, into, strict=True)))
    return Fetch([(first, planes) for (first, _), planes in zip(theirs.values(), into)], works)


def add_home(grad: Tensor, axis: Axis, dim: int, edges: Sequence[int], home: Fetch) -> None:
    """Adds the gradients that came home to those of my planes, in place."""
    got = home.wait()
    begin = edges[axis.rank]
    add_parts(grad, dim, [first - begin for first, _ in got], [planes for _, planes in got])


def assemble(
    x: Tensor,
    axis: Axis,
    dim: int,
    edges: Sequence[int],
    need: Span,
    fetched: Sequence[tuple[int, Tensor]],
    *,
    fill: float = 0.0,
) -> Tensor:
    """The planes that I need: my own, the fetched ones, and `fill` beyond the ends of the whole."""
    begin, end = edges[axis.rank], edges[axis.rank + 1]
    low, high = need
    own = overlap(need, (begin, end))
    if (low, high) == (begin, end):
        return x
    before = [planes for first, planes in fetched if first < begin]
    after = [planes for first, planes in fetched if first >= end]
    mine = [x.narrow(dim, own[0] - begin, own[1] - own[0])] if own[0] < own[1] else []
    pieces = [
        *_filled(x, dim, min(0, high) - low, fill),
        *before,
        *mine,
        *after,
        *_filled(x, dim, high - max(edges[-1], low), fill),
    ]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def disassemble(
    grad: Tensor, axis: Axis, dim: int, edges: Sequence[int], needs: Sequence[Span], home: Fetch | None = None
) -> Tensor:
    """The gradient of my own planes: the transpose of fetch and assemble."""
    need = needs[axis.rank]
    begin, end = edges[axis.rank], edges[axis.rank + 1]
    home = home or send_home(grad, axis, dim, edges, needs)
    own = overlap(need, (begin, end))
    if own == (begin, end):
        mine = grad.narrow(dim, begin - need[0], end - begin)
        mine = mine.contiguous() if not home.planes else mine.clone(memory_format=torch.contiguous_format)
    else:
        mine = _zeros(grad, dim, end - begin)
        if own[0] < own[1]:
            mine.narrow(dim, own[0] - begin, own[1] - own[0]).copy_(grad.narrow(dim, own[0] - need[0], own[1] - own[0]))
    add_home(mine, axis, dim, edges, home)
    return mine


def _post(axis: Axis, out: dict[int, Tensor], into: dict[int, Tensor]) -> list[dist.Work]:
    for tensor in out.values():
        axis.traffic.halo_bytes += tensor.numel() * tensor.element_size()
        axis.traffic.halo_messages += 1
    some = next(iter((*out.values(), *into.values())), None)
    if some is None or _pretend(axis, some):
        return []
    operations = [
        *(dist.P2POp(dist.isend, tensor, group=axis.group, group_peer=other) for other, tensor in out.items()),
        *(dist.P2POp(dist.irecv, tensor, group=axis.group, group_peer=other) for other, tensor in into.items()),
    ]
    return list(dist.batch_isend_irecv(operations))


def _some(spans: dict[int, Span]) -> dict[int, Span]:
    """Those that are not empty."""
    return {other: span for other, span in spans.items() if span[0] < span[1]}


def _zeros(like: Tensor, dim: int, planes: int) -> Tensor:
    shape = list(like.shape)
    shape[dim] = planes
    return like.new_zeros(shape)


def _filled(like: Tensor, dim: int, planes: int, value: float) -> list[Tensor]:
    if planes <= 0:
        return []
    shape = list(like.shape)
    shape[dim] = planes
    return [like.new_full(shape, value)]

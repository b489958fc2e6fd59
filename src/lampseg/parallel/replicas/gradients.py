"""The sum of gradients over replicas: in flat buckets of bounded size, while other stages still compute."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn

BUCKET_BYTES = 32 * 2**20
IN_FLIGHT = 2
"""Buckets that are under way at once: one is filled or emptied while the other travels."""


@dataclass(frozen=True)
class _Piece:
    """A range of a parameter's elements."""

    parameter: nn.Parameter
    first: int
    last: int

    @property
    def count(self) -> int:
        return self.last - self.first


@dataclass
class _Bucket:
    pieces: list[_Piece]
    buffer: Tensor
    """The pieces' gradients one after the other; then for each piece, how many replicas have a gradient."""
    work: dist.Work


class GradientSum:
    """Sums `.grad` over the replicas of one device.

    The replicas may add their stages at different times, but do so in the same order: the last backward of a stage
    follows those of the stages behind it. A parameter without gradient counts as zero; it stays without one if it has
    none on any replica.

    Args:
        group: the same device of every replica.
        nbytes: of a bucket.
    """

    def __init__(self, group: dist.ProcessGroup, *, nbytes: int = BUCKET_BYTES) -> None:
        self._group, self._nbytes = group, nbytes
        self._queue: deque[list[_Piece]] = deque()
        self._flying: deque[_Bucket] = deque()

    def add(self, parameters: Sequence[nn.Parameter]) -> None:
        """Begins to sum; nothing may be added to these gradients before `finish`. Does not wait."""
        self._queue.extend(_packed(parameters, self._nbytes))
        self._launch()

    def finish(self) -> None:
        """Waits until all that was added is summed."""
        while self._flying:
            self._land(self._flying.popleft())
            self._launch()

    def _launch(self) -> None:
        while self._queue and len(self._flying) < IN_FLIGHT:
            pieces = self._queue.popleft()
            total = sum(piece.count for piece in pieces)
            like = pieces[0].parameter
            buffer = torch.zeros(total + len(pieces), dtype=like.dtype, device=like.device)
            for piece, target in zip(pieces, _split(buffer, pieces), strict=True):
                if (gradient := piece.parameter.grad) is not None:
                    target.copy_(gradient.reshape(-1)[piece.first : piece.last])
            buffer[total:] = torch.tensor([float(piece.parameter.grad is not None) for piece in pieces])
            work = dist.all_reduce(buffer, group=self._group, async_op=True)
            assert work is not None
            self._flying.append(_Bucket(pieces, buffer, work))

    def _land(self, bucket: _Bucket) -> None:
        bucket.work.wait()
        holders = bucket.buffer[-len(bucket.pieces) :].tolist()
        for piece, source, count in zip(bucket.pieces, _split(bucket.buffer, bucket.pieces), holders, strict=True):
            if count == 0:
                continue
            if piece.parameter.grad is None:
                piece.parameter.grad = torch.zeros_like(piece.parameter)
            if not piece.parameter.grad.is_contiguous():
                piece.parameter.grad = piece.parameter.grad.contiguous()
            piece.parameter.grad.view(-1)[piece.first : piece.last].copy_(source)


def _packed(parameters: Sequence[nn.Parameter], nbytes: int) -> Iterator[list[_Piece]]:
    """Pieces of one data type, at most `nbytes` together; large parameters are divided."""
    pieces: list[_Piece] = []
    room = 0
    for parameter in parameters:
        first = 0
        while first < parameter.numel():
            if not pieces or pieces[0].parameter.dtype != parameter.dtype or room == 0:
                if pieces:
                    yield pieces
                pieces, room = [], max(1, nbytes // parameter.element_size())
            last = min(parameter.numel(), first + room)
            pieces.append(_Piece(parameter, first, last))
            room -= last - first
            first = last
    if pieces:
        yield pieces


def _split(buffer: Tensor, pieces: Sequence[_Piece]) -> Sequence[Tensor]:
    counts = [piece.count for piece in pieces]
    split: Sequence[Tensor] = buffer[: sum(counts)].split(counts)
    return split

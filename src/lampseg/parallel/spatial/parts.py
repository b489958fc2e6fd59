"""Parts of a tensor along one dimension: copied, received and added two at once, as a slab has two neighbours.

Each is a small call on a GPU, whose start takes longer than its work.
"""

from collections.abc import Sequence

from torch import Tensor

Span = tuple[int, int]


def parts_of(t: Tensor, dim: int, spans: Sequence[Span]) -> tuple[Tensor, ...]:
    """Parts of a tensor, contiguous."""
    both = _both(t, dim, spans)
    if both is not None:
        return both.contiguous().unbind(0)
    return tuple(t.narrow(dim, first, last - first).contiguous() for first, last in spans)


def empty_parts(like: Tensor, dim: int, counts: Sequence[int]) -> tuple[Tensor, ...]:
    """New tensors of so many planes each; of one memory if they are equal."""
    shapes = [[*like.shape[:dim], count, *like.shape[dim + 1 :]] for count in counts]
    if len(counts) == 2 and counts[0] == counts[1]:
        return like.new_empty([2, *shapes[0]]).unbind(0)
    return tuple(like.new_empty(shape) for shape in shapes)


def add_parts(t: Tensor, dim: int, firsts: Sequence[int], parts: Sequence[Tensor]) -> None:
    """Adds parts at their places, in place.

    Args:
        parts: as `empty_parts` makes them.
    """
    spans = [(first, first + part.shape[dim]) for first, part in zip(firsts, parts, strict=True)]
    both = _both(t, dim, spans) if len(parts) == 2 and spans[0][1] <= spans[1][0] else None
    if both is not None:  # of equal size
        one, other = parts
        stacked = one.as_strided([2, *one.shape], [one.numel(), *one.stride()])
        assert other.storage_offset() - one.storage_offset() == one.numel()
        both.add_(stacked)
        return
    for (first, last), part in zip(spans, parts, strict=True):
        t.narrow(dim, first, last - first).add_(part)


def _both(t: Tensor, dim: int, spans: Sequence[Span]) -> Tensor | None:
    """A view (2, ...) of two parts of one length, the earlier first; None if there are no such."""
    if len(spans) != 2:
        return None
    (first, end), (second, last) = spans
    length = end - first
    if last - second != length or second <= first:
        return None
    both = t.narrow(dim, first, last - first).unfold(dim, length, second - first)
    return both.movedim(dim, 0).movedim(-1, dim + 1)

"""Test-time mirroring: the mean of the probabilities over flips of the volume."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from lampseg.errors import UserError

AXES = ("x", "y", "z")
_OTHER = {"l": "r", "r": "l", "left": "right", "right": "left"}


@dataclass(frozen=True)
class Mirror:
    """Along which axes of the network's grid (x runs from left to right) volumes are flipped; none: not at all."""

    axes: tuple[int, ...] = ()
    swaps: tuple[tuple[int, int], ...] = ()
    """Classes that change places in a volume flipped along x, such as the left and the right kidney."""

    @cached_property
    def flips(self) -> tuple[tuple[int, ...], ...]:
        """All combinations of the axes, first that of none."""
        counts = range(len(self.axes) + 1)
        return tuple(flip for count in counts for flip in itertools.combinations(self.axes, count))

    @property
    def averages(self) -> bool:
        """Whether scores are mean probabilities; else they are the logits."""
        return bool(self.axes)

    def back(self, scores: Tensor, flip: Sequence[int]) -> Tensor:
        """Scores (C, X, Y, Z) of a flipped volume, brought back to the volume as it is."""
        if flip:
            scores = scores.flip([axis + 1 for axis in flip])
        if 0 in flip and self.swaps:
            order = list(range(len(scores)))
            for first, second in self.swaps:
                order[first], order[second] = second, first
            scores = scores[order]
        return scores


def mirror_of(axes: str, *, classes: Sequence[str], swaps_pairs: bool = False) -> Mirror:
    """From a text such as `x,z`, empty for none.

    Args:
        classes: their names, background first.
        swaps_pairs: whether left and right organs change places when a volume is flipped along x.

    Raises:
        UserError: no such axis; along x, with left and right organs, and they do not change places.
    """
    named = [part.strip().lower() for part in axes.split(",")] if axes.strip() else []
    unknown = [part for part in named if part not in AXES]
    if unknown or len(set(named)) < len(named):
        raise UserError(f"--mirror: {axes!r} is not some of x, y and z, such as `y,z`")
    pairs = left_right_pairs(classes)
    if "x" in named and pairs and not swaps_pairs:
        first, second = (classes[index] for index in pairs[0])
        raise UserError(
            f"--mirror: a volume flipped along x shows {second} where {first} is, and the two would be mixed; leave x "
            "out, or let them change places with --mirror-swaps-pairs (for a network that tells left from right by "
            "what it sees, not only by where it is)"
        )
    chosen = tuple(sorted(AXES.index(part) for part in named))
    return Mirror(chosen, pairs if swaps_pairs and 0 in chosen else ())


def left_right_pairs(classes: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Pairs of classes whose names differ in L and R or left and right alone (`Parotid_L`, `left kidney`)."""
    index = {name.lower(): number for number, name in enumerate(classes)}
    pairs = []
    for number, name in enumerate(classes):
        parts = re.split(r"([^A-Za-z]+)", name.lower())
        for n, part in enumerate(parts):
            other = index.get("".join([*parts[:n], _OTHER[part], *parts[n + 1 :]])) if part in _OTHER else None
            if other is not None and number < other:
                pairs.append((number, other))
                break
    return tuple(pairs)

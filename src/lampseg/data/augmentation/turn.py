"""Flips and quarter turns: which part of a box a part of the turned box is, and arrays turned."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Turn:
    """Axis a of the turned box runs along axis `axes[a]` of the box, from its end if `backwards[a]`."""

    axes: Triple = (0, 1, 2)
    backwards: tuple[bool, bool, bool] = (False, False, False)

    @staticmethod
    def of(*, flips: Sequence[bool], quarters: int) -> "Turn":
        """First the flips along X, Y, Z, then quarter turns in the XY plane, from X towards Y (as `numpy.rot90`)."""
        axes = (1, 0, 2) if quarters % 2 else (0, 1, 2)
        first, second = ((False, False), (True, False), (True, True), (False, True))[quarters % 4]
        x, y, z = (turned != bool(flips[axis]) for turned, axis in zip((first, second, False), axes))
        return Turn(axes, (x, y, z))

    @property
    def mirrors(self) -> bool:
        """Whether left becomes right: an odd number of flips."""
        return (sum(self.backwards) + (self.axes != (0, 1, 2))) % 2 == 1

    def size(self, size: Triple) -> Triple:
        """Of the turned box."""
        x, y, z = (size[axis] for axis in self.axes)
        return (x, y, z)

    def source(self, region: Sequence[slice], size: Triple) -> tuple[slice, ...]:
        """The part of a box of `size` that becomes `region` of the turned box."""
        found = [slice(0, 0)] * 3
        for axis, part, backwards in zip(self.axes, region, self.backwards):
            length = size[axis]
            found[axis] = slice(length - part.stop, length - part.start) if backwards else part
        return tuple(found)

    def __call__(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An array (..., X, Y, Z), turned."""
        lead = array.ndim - 3
        turned: npt.NDArray[Any] = np.transpose(array, (*range(lead), *(lead + axis for axis in self.axes)))
        return np.flip(turned, tuple(lead + axis for axis, backwards in enumerate(self.backwards) if backwards))


STILL = Turn()

"""The largest connected component of each class: what lies apart from an organ's main part becomes background."""

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from lampseg.errors import UserError

_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)
"""Voxels that touch by a face, an edge or a corner are connected (26-connectivity)."""


def keep_largest(labels: npt.NDArray[Any], classes: Sequence[int]) -> None:
    """Sets to 0, in place, all but the largest component of each of these classes; of equal ones the first stays.

    Takes 5 bytes a voxel of the box around a class, beside the labels.
    """
    boxes = ndimage.find_objects(labels)
    for index in classes:
        box = boxes[index - 1] if index <= len(boxes) else None
        if box is None:
            continue
        inside = labels[box]
        parts, count = ndimage.label(inside == index, structure=_NEIGHBOURS)
        if count > 1:
            largest = int(np.bincount(parts.ravel())[1:].argmax()) + 1
            inside[(parts != largest) & (parts > 0)] = 0


def chosen_classes(text: str, classes: Sequence[str]) -> tuple[int, ...]:
    """The class indices that `all`, or names parted by commas, stand for; an empty text is none.

    Raises:
        UserError: an unknown name, or the background.
    """
    if not text.strip():
        return ()
    if text.strip() == "all" and "all" not in classes:
        return tuple(range(1, len(classes)))
    found = []
    for name in (part.strip() for part in text.split(",")):
        if name not in classes[1:]:
            near = difflib.get_close_matches(name, classes[1:], n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"the organs are {', '.join(classes[1:])}; or `all`"
            raise UserError(f"--largest-component: no organ is called `{name}`: {hint}")
        found.append(list(classes).index(name))
    return tuple(dict.fromkeys(found))

"""Organs that come in left and right: a mirrored body has them exchanged, so flips must not keep their labels."""

import re
from collections.abc import Sequence

from lampseg.config_augmentation import AugmentationConfig
from lampseg.errors import UserError

Pairs = tuple[tuple[int, int], ...]


def side_pairs(classes: Sequence[str]) -> Pairs:
    """Indices of classes whose names differ by left and right alone: Parotid_L and Parotid_R, `left lung`, ..."""
    places = {_words(name): index for index, name in enumerate(classes)}
    found = []
    for index, name in enumerate(_words(name) for name in classes):
        for position, word in enumerate(name):
            other = {"l": "r", "left": "right"}.get(word)
            partner = None if other is None else places.get((*name[:position], other, *name[position + 1 :]))
            if partner is not None:
                found.append((index, partner))
    return tuple(found)


def check_sides(config: AugmentationConfig, classes: Sequence[str]) -> None:
    """Raises UserError where flips would call left organs right."""
    pairs = side_pairs(classes)
    if config.flip is None or config.flip.probability == 0 or config.flip.swap_pairs or not pairs:
        return
    left, right = (classes[index] for index in pairs[0])
    raise UserError(
        f"augmentation.flip: a mirrored body has left and right exchanged, but {left} would still be called {left}, "
        f"not {right}; set augmentation.flip.swap_pairs to true, which exchanges the labels of "
        f"{', '.join(f'{classes[a]}/{classes[b]}' for a, b in pairs)} in mirrored boxes, or leave out flip"
    )


def swapped(pairs: Pairs, classes: int) -> list[int]:
    """For each class index, what it is called in a mirrored box."""
    names = list(range(classes))
    for left, right in pairs:
        names[left], names[right] = right, left
    return names


def _words(name: str) -> tuple[str, ...]:
    """Lower-case words of a name: Parotid_L, parotid-l and `Parotid L` are parotid and l."""
    return tuple(word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+", name))

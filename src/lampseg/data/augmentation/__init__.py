"""Random changes of what is drawn for training: drawn as values, applied to any part of a box as to the whole."""

from lampseg.data.augmentation.change import Change, draw_change
from lampseg.data.augmentation.sides import check_sides, side_pairs, swapped

__all__ = ["Change", "check_sides", "draw_change", "side_pairs", "swapped"]

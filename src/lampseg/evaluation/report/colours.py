"""One colour for every class, the same in the report's slices and in its viewer."""

import colorsys

_BRIGHT = ("#33bbff", "#ff9f1c", "#5fe36a", "#ff5c5c", "#c58bff", "#ffe04a", "#ff7ad9", "#3fe0c5", "#b6e34a", "#f4b183")
"""Colours that stand out from a grey image and, with most kinds of colour vision, from each other."""
_GOLDEN = 0.618034
"""Its multiples, taken modulo 1, stay far from each other."""


def class_colour(c: int) -> str:
    """`#rrggbb` of class c >= 1: ten chosen by hand, then hues at the golden ratio's distance."""
    assert c >= 1, "the background has no colour"
    if c <= len(_BRIGHT):
        return _BRIGHT[c - 1]
    rgb = colorsys.hls_to_rgb(c * _GOLDEN % 1.0, 0.55 + 0.15 * (c % 3 - 1), 0.9)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def class_rgb(c: int) -> tuple[int, int, int]:
    """The same as three numbers from 0 to 255."""
    text = class_colour(c)
    return int(text[1:3], 16), int(text[3:5], 16), int(text[5:7], 16)

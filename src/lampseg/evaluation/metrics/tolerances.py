"""Tolerances of the surface Dice in mm: one for all classes, or one for each."""

import difflib
import math
from collections.abc import Iterable, Sequence

from lampseg.errors import UserError

DEFAULT_MM = 2.0
"""For classes that are given none."""


def tolerances(given: float | str | Iterable[str], *, organs: Sequence[str]) -> tuple[float, ...]:
    """The tolerance of every class: `2`, `"2"`, or items such as `["2", "Chiasm=2.5", "Mandible=1"]`.

    A number without a name is for the classes that are not named; without it they get 2 mm.

    Raises:
        UserError: not a number of mm above or equal to 0, an unknown class, or two tolerances for one.
    """
    items = [given] if isinstance(given, str | float | int) else list(given)
    found: dict[str | None, float] = {}
    for item in items:
        name, equals, number = str(item).rpartition("=")
        organ = name.strip() if equals else None
        if organ is not None and organ not in organs:
            near = difflib.get_close_matches(organ, organs, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"the classes are {', '.join(organs)}"
            raise UserError(f"--tolerance: there is no class `{organ}`; {hint}")
        if organ in found:
            raise UserError(f"--tolerance: {organ or 'all classes'} given twice; give one number of mm")
        found[organ] = _millimetres(str(item), number)
    return tuple(found.get(organ, found.get(None, DEFAULT_MM)) for organ in organs)


def _millimetres(item: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"--tolerance: `{item}` is no number of mm; give e.g. 2, or 2 Chiasm=2.5 for single classes")
    return value

"""The table of rules: which functions are known to be exact on slabs, and by what they are then run."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Rule = Callable[[Any, Callable[..., Any], Any, Any], Any]
"""Called with the slab mode, the function and its arguments."""

RULES: dict[Callable[..., Any], Rule] = {}


def exact(*functions: Callable[..., Any]) -> Callable[[Rule], Rule]:
    """Enters a rule for these functions."""

    def enter(rule: Rule) -> Rule:
        for function in dict.fromkeys(functions):  # F.x and torch.x may be one
            assert function not in RULES, f"one rule for {function}"
            RULES[function] = rule
        return rule

    return enter


def forms(*names: str, places: tuple[Any, ...] = (torch, Tensor, F)) -> list[Callable[..., Any]]:
    """Every form in which torch has functions of these names: torch.x, Tensor.x, F.x, each also in place."""
    found: dict[Callable[..., Any], None] = {}
    for name in names:
        for place in places:
            for form in (name, f"{name}_"):
                function = getattr(place, form, None)
                if callable(function):
                    found[function] = None
    return list(found)


def operators(*names: str) -> list[Callable[..., Any]]:
    """Python's operators of these names: Tensor.__x__, and where there are, __rx__ and __ix__."""
    found = []
    for name in names:
        for form in (f"__{name}__", f"__r{name}__", f"__i{name}__"):
            function = getattr(Tensor, form, None)
            if function is not None and function is not getattr(object, form, None):
                found.append(function)
    return list(dict.fromkeys(found))

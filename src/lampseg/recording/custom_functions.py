"""Calls of custom autograd functions as one call that a function mode can see.

A TorchFunctionMode is not told of `SomeFunction.apply(x)`; it would see the operations inside one by one, under
no_grad, and lose the function's own backward. While a recording or a stage runs, `apply` goes through the mode like
any other torch function.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import _get_current_function_mode, handle_torch_function

_original: Any = torch.autograd.Function.__dict__["apply"]
_lock = threading.Lock()
_users = 0


def _apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
    if _get_current_function_mode() is None:
        return _original.__func__(cls, *args, **kwargs)

    def call(*args: Any, **kwargs: Any) -> Any:
        return _original.__func__(cls, *args, **kwargs)

    call.__name__ = f"{cls.__name__}.apply"
    return handle_torch_function(call, (), *args, **kwargs)


@contextmanager
def visible_functions() -> Iterator[None]:
    """Within, function modes see `SomeFunction.apply` as one call of that name."""
    global _users
    with _lock:
        _users += 1
        torch.autograd.Function.apply = classmethod(_apply)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                torch.autograd.Function.apply = _original  # type: ignore[method-assign]

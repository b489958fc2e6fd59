"""The refusal of what may be wrong on slabs: the error, and the line of the network that it names."""

import sys

from lampseg.errors import UserError


class NotExactError(UserError):
    """A function that is not known to be exact on slabs was called with one."""


def calling_line() -> str:
    """Where the network made the call: the innermost line outside torch and this package."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename.replace("\\", "/")
        if not any(part in file for part in ("/torch/", "/lampseg/parallel/", "/contextlib.py")):
            return f" (at {file}:{frame.f_lineno})"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""

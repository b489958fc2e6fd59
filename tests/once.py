"""What one process of the test session makes for all, when the first of them asks for it."""

import fcntl
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

Made = TypeVar("Made")


def shared_folder(factory: pytest.TempPathFactory, name: str) -> Path:
    """The same folder in every process of the session (pytest-xdist has one for each core)."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


def once(folder: Path, name: str, make: Callable[[], Made]) -> Made:
    """What `make` returned to the first that asked; others that ask meanwhile wait. If it raises, the next one tries.

    Args:
        folder: the session's own.
        make: returns something small, such as the path of what it wrote.
    """
    made = folder / f"{name}.made"
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            made.write_bytes(pickle.dumps(make()))
        found: Made = pickle.loads(made.read_bytes())
    return found

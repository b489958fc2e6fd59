"""A full disk for one block of a test."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_space_beyond(size: int) -> Iterator[None]:
    """Within, no file of this process can grow beyond `size` bytes.

    Around the call in question only, never as a fixture: pytest itself writes between the phases of a test, and its
    output may be a file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

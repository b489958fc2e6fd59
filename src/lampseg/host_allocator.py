"""Freed host memory stays with the process for a while: a training step takes the same amounts again and again.

glibc gives large blocks back to the system as soon as they are freed. The next tensor of that size gets new pages,
which the system must first fill with zeros: a sixth of a training step's time on a CPU
(benchmarks/pipeline_throughput/README.md).
"""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of glibc's mallopt.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_MMAP_MAX = -4
_NEVER = -1
_DEFAULT_MMAP_MAX = 65536
_SETTLED = 32 * 2**20
"""Bytes of the largest block that glibc by itself would come to keep, of whose double it would keep free memory."""


@contextmanager
def freed_memory_kept(*, wanted: bool = True) -> Iterator[None]:
    """Within, freed memory is kept for the next tensors; at the end it goes back to the system.

    Does nothing where the C library is not glibc.
    """
    libc = _glibc() if wanted else None
    if libc is None:
        yield
        return
    # All from the heap, whose end is never given back.
    libc.mallopt(_MMAP_MAX, 0)
    libc.mallopt(_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        # glibc adapts its thresholds until they are set once: here they are set to where it ends up.
        libc.mallopt(_MMAP_MAX, _DEFAULT_MMAP_MAX)
        libc.mallopt(_MMAP_THRESHOLD, _SETTLED)
        libc.mallopt(_TRIM_THRESHOLD, 2 * _SETTLED)
        give_back()


def give_back() -> None:
    """Returns what has been freed and kept so far to the system."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(ctypes.c_size_t(0))


def _glibc() -> ctypes.CDLL | None:
    """None where the C library is another."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if libc is not None and all(hasattr(libc, name) for name in ("mallopt", "malloc_trim")) else None

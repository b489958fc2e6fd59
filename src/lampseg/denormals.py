"""Whether this thread flushes denormal numbers (below 1e-38 in float32) to zero, and to have it so for a while.

Training wants them flushed: a confident softmax has such gradients, and they make a convolution 100 times slower.
scipy's KDTree must not have them flushed: it splits at the number next to 0 and recurses until the stack is full.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def denormals(*, flushed: bool) -> Iterator[None]:
    """Flushes them, or keeps them, within; afterwards it is as before. Threads that are begun meanwhile inherit it."""
    before = float(np.full(1, 1e-30, np.float32)[0] * np.float32(1e-10)) == 0
    torch.set_flush_denormal(flushed)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)

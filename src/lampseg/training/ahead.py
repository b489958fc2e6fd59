"""Reading ahead: one thread reads the voxels of the next step while this one computes."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from lampseg.training.batches import MicroBatch

Step = tuple[int, int]
"""Curriculum stage, and step within it."""


class ReadAhead:
    """What this process used of a step, it reads of the next one, as soon as that is announced.

    A step's voxels are a function of its draws, so nothing depends on whether, or when, they were read ahead. A fault
    while reading appears where the voxels are used. The thread ends with what it reads; nobody has to stop it.

    Args:
        on: whether to read ahead at all; it holds one more mini-batch in the host's memory.
    """

    def __init__(self, *, on: bool) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-ahead") if on else None
        self._used: list[frozenset[str]] = []
        self._next: tuple[Step, list[MicroBatch]] | None = None

    @property
    def on(self) -> bool:
        return self._pool is not None

    def announce(self, step: Step, batches: list[MicroBatch]) -> None:
        """Begins to read what `note_used` said of the last step; more and other micro-batches are read when used."""
        assert self._pool is not None
        for batch, kinds in zip(batches, self._used):
            for kind in sorted(kinds):
                batch.read_ahead(kind, self._pool)
        self._next = (step, batches)

    def take(self, step: Step) -> list[MicroBatch] | None:
        """The micro-batches of a step that was announced; None for any other."""
        found, self._next = self._next, None
        return found[1] if found is not None and found[0] == step else None

    def note_used(self, batches: Sequence[MicroBatch]) -> None:
        """After a step: what this process used of its micro-batches."""
        self._used = [frozenset(batch.used) for batch in batches]

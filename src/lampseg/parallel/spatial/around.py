"""Slabs of a stage: what slab mode adds where a part of the network runs on slabs, without what came before it.

    network's call --> stage mode: mine? --> slab mode: the rule that is exact on slabs --> torch
                            | no
                            v
                       a placeholder

Slab mode marks tensors as it goes, and learns where sizes are cut. A stage that begins in the middle gets its tensors
by message, unmarked. So what was noted of every value and known before every operation is recorded with the graph, on
fake tensors, for this rank's slab, and put back where a stage begins.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from lampseg.parallel.spatial.layout import is_constant, layout_of, mark, mark_constant
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.recording.graph import Graph, ValueId
from lampseg.recording.kernel import Kernel


class AroundSlab:
    """Surrounds a network while it is recorded for one rank's slab of a micro-batch (`recording.around`).

    Args:
        spatial: the rank's slab mode; nothing is sent.
        shape: of the whole micro-batch, (N, C, *spatial).
    """

    def __init__(self, spatial: SpatialParallel, shape: Sequence[int]) -> None:
        self.spatial, self.shape = spatial.rehearsed(), tuple(shape)
        self._sent: dict[int, tuple[int, int, int, int]] = {}

    def local(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the rank's slab."""
        assert shape == self.shape
        local = list(shape)
        for shard in self.spatial.layout(shape):
            local[shard.dim] = self.spatial.local(shard)
        return tuple(local)

    def begin(self, x: Tensor) -> Tensor:
        self.spatial.begin()
        self.messages()
        return self.spatial.slab(x, self.spatial.layout(self.shape))

    def mode(self) -> SpatialParallel:
        return self.spatial

    def note(self, tensor: Tensor) -> Any:
        return layout_of(tensor), is_constant(tensor)

    def marked(self, tensor: Tensor, note: Any) -> Tensor:
        return marked(tensor, note)

    def placed(self, mine: Tensor) -> Tensor:
        shift = mine.dim() - len(self.shape)
        layout = tuple(shard.at(shard.dim + shift) for shard in self.spatial.layout(self.shape))
        return self.spatial.slab(mine, layout)

    def state(self) -> Any:
        return self.spatial.known

    def messages(self) -> tuple[Kernel, ...]:
        """Halos as messages, sums over ranks as collectives; along each axis."""
        found = []
        for axis in self.spatial.axes:
            traffic = axis.traffic
            now = traffic.halo_bytes, traffic.halo_messages, traffic.collective_bytes, traffic.collectives
            before = self._sent.get(axis.number, (0, 0, 0, 0))
            self._sent[axis.number] = now
            halo, messages, summed, sums = (new - old for new, old in zip(now, before))
            if messages:
                found.append(Kernel("halo", "message", 0.0, halo, voxels=messages))
            if sums:
                found.append(Kernel("all_reduce", "collective", 0.0, summed, voxels=sums, taps=axis.size))
        return tuple(found)


def marked(tensor: Tensor, note: Any) -> Tensor:
    """A tensor, marked as it was noted."""
    layout, constant = note
    mark(tensor, layout)
    return mark_constant(tensor) if constant else tensor


class StageSlabs:
    """What passes of a stage do on one rank's slabs.

    Args:
        spatial: the slab mode of those who share the stage.
    """

    def __init__(self, spatial: SpatialParallel) -> None:
        self.spatial = spatial

    @property
    def size(self) -> int:
        """Ranks that share a volume."""
        return self.spatial.size

    def around(self, shape: Sequence[int]) -> AroundSlab:
        """For recording the network on my slab of a micro-batch of this shape."""
        return AroundSlab(self.spatial, shape)

    @contextlib.contextmanager
    def entered(self, graph: Graph, *, first: int) -> Iterator[None]:
        """Slab mode, as it is before the operation with which the stage begins."""
        self.spatial.begin()
        self.spatial.known = graph.state_before(first)
        with self.spatial:
            yield

    def marked(self, tensor: Tensor, graph: Graph, value: ValueId) -> Tensor:
        """A received tensor, marked as what the graph says."""
        return marked(tensor, graph.notes[value])

    @contextlib.contextmanager
    def drawing(self, seed: int) -> Iterator[None]:
        """Random numbers of one operation: they follow its seed, however many were drawn before."""
        self.spatial.calls = 0
        with self.spatial.random(seed):
            yield

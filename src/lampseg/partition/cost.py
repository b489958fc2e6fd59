"""The cost model: time and bytes of every possible stage, from the recorded operations alone."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import EllipsisType

import numpy as np
from numpy.typing import NDArray

from lampseg.partition.plan import Recompute
from lampseg.recording.graph import INPUT, Graph
from lampseg.recording.kernel import Kernel
from lampseg.recording.tally import Tally

Table = NDArray[np.float64]
At = tuple[int, int] | EllipsisType
"""A stage, as (first position, position after the last); ...: all."""


@dataclass(frozen=True)
class Rates:
    """How long things take on the devices at hand, in seconds."""

    kernel: Callable[[Kernel], float]
    """One kernel call."""
    workspace: Callable[[Kernel], float]
    """Bytes that its library allocates beside its tensors."""
    transfer: Callable[[float], float]
    """One message of so many bytes between two devices."""

    def kernels(self, kernels: Iterable[Kernel]) -> float:
        return sum(map(self.kernel, kernels))


@dataclass(frozen=True)
class Regime:
    """How the micro-batches of one replica run: what memory depends on besides the operations."""

    micro_batches: int = 1
    held: tuple[int, ...] = (1,)
    """Micro-batches that each stage has in flight at most."""
    recompute: tuple[Recompute, ...] | None = None
    """Of each stage; None: where the memory needs it."""
    optimizer_bytes_per_parameter_byte: float = 1.0
    """RMSprop without momentum keeps one number for each parameter."""


class IntervalCosts:
    """Costs of the stage that begins at position i and ends before position j, for all i < j; of one micro-batch.

    Positions are the operations at which a stage may begin, and the end; a table has shape
    (positions, positions + 1) and is indexed [i, j]. The loss counts as part of the last operation.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        state_bytes: dict[str, int],
        trainable: frozenset[str],
        rates: Rates,
        loss: Tally | None = None,
    ) -> None:
        loss = loss or Tally((), (), 0, 0)
        self.graph = graph
        self.starts = (0, *graph.cut_positions)
        self.count = len(self.starts)
        self._segment = np.searchsorted(self.starts, np.arange(len(graph.operations)), side="right") - 1
        forward, backward, flops, extra, workspace = (np.zeros(self.count) for _ in range(5))
        for op in graph.operations:
            at = self._segment[op.index]
            forward[at] += rates.kernels(op.kernels)
            backward[at] += rates.kernels(op.backward_kernels)
            flops[at] += op.flops + op.backward_flops
            extra[at] = max(extra[at], op.forward_extra, op.backward_extra)
            workspace[at] = max(workspace[at], *map(rates.workspace, (*op.kernels, *op.backward_kernels)), 0.0)
        forward[-1] += rates.kernels(loss.forward)
        backward[-1] += rates.kernels(loss.backward)
        extra[-1] = max(extra[-1], loss.extra_bytes)
        self.forward, self.backward, self.flops = (self._sums(part) for part in (forward, backward, flops))
        last = len(graph.operations) - 1
        self.saved = self._union(
            [*((storage.nbytes, storage.savers, None) for storage in graph.saved), (loss.saved_bytes, [last], None)]
        )
        readers: dict[str, list[int]] = {}
        for op in graph.operations:
            for name in op.state:
                readers.setdefault(name, []).append(op.index)
        self.state = self._union((state_bytes[name], ops, None) for name, ops in readers.items())
        self.trainable = self._union(
            (state_bytes[name], ops, None) for name, ops in readers.items() if name in trainable
        )
        uses: dict[tuple[int, int], list[int]] = {}
        for op in graph.operations:
            for value in op.reads:
                uses.setdefault(value, []).append(op.index)
        for value in graph.outputs:
            uses.setdefault(value, []).append(last)
        self.received = self._union((graph.values[value].nbytes, ops, value[0]) for value, ops in uses.items())
        messages = self._union((1, ops, value[0]) for value, ops in uses.items())
        latency = rates.transfer(0)
        volume = max(float(self.received.max()), 1.0)
        per_byte = (rates.transfer(volume) - latency) / volume
        self.transfer = messages * latency + self.received * per_byte
        """Seconds of the messages that a stage receives, if all come from other devices."""
        self.walk = np.zeros((self.count, self.count + 1))
        """Activations at most alive while one micro-batch goes through the stage, forward and backward."""
        self.workspace = np.zeros((self.count, self.count + 1))
        """Bytes that libraries allocate beside the tensors, at most."""
        for i in range(self.count):
            self.walk[i, i + 1 :] = np.maximum.accumulate(self.saved[i, i + 1 :] + extra[i:])
            self.workspace[i, i + 1 :] = np.maximum.accumulate(workspace[i:])

    def _sums(self, per_segment: Table) -> Table:
        total = np.concatenate([[0.0], np.cumsum(per_segment)])
        return np.asarray(total[None, :] - total[:-1, None])

    def _union(self, items: Iterable[tuple[int, Iterable[int], int | None]]) -> Table:
        """Bytes of the distinct items that a stage touches; with a producer, only if it lies before the stage."""
        table = np.zeros((self.count, self.count + 1))
        for nbytes, operations, producer in items:
            previous = -1 if producer is None else self._segment[producer] if producer != INPUT else 0
            for at in sorted({int(self._segment[op]) for op in operations}):
                if at > previous:
                    table[previous + 1 : at + 1, at + 1] += nbytes  # the first touch, seen from these starts
                    previous = at
        return np.asarray(np.cumsum(table, axis=1))

    # Of all stages, or with `at` of one: the tables of a large network are too many numbers to ask for one of them.

    def seconds(self, *, again: bool, at: At = ...) -> Table:
        """Forward and backward of one micro-batch; `again`: with a second forward (recompute)."""
        return np.asarray(self.forward[at] * (2 if again else 1) + self.backward[at])

    def state_bytes(self, regime: Regime, *, at: At = ...) -> Table:
        """Parameters, buffers, gradients and optimizer state of a stage."""
        return np.asarray(self.state[at] + self.trainable[at] * (1 + regime.optimizer_bytes_per_parameter_byte))

    def kept_bytes(self, *, held: int, again: bool, at: At = ...) -> Table:
        """What a stage keeps of the micro-batches in flight while it does not run."""
        return np.asarray(held * (self.received if again else self.saved)[at])

    def active_bytes(self, *, held: int, again: bool, at: At = ...) -> Table:
        """What a stage has at most, beside its state, while it runs: one micro-batch walks through it."""
        kept = self.kept_bytes(held=held if again else held - 1, again=again, at=at)
        return np.asarray(kept + self.walk[at] + self.received[at])

    def peak_bytes(self, regime: Regime, *, held: int, again: bool, at: At = ...) -> Table:
        """Peak memory of a stage that has a device to itself: the formula of docs/concepts/planning.md."""
        active = self.active_bytes(held=held, again=again, at=at)
        return np.asarray(self.state_bytes(regime, at=at) + active + self.workspace[at])

    def least_peak(self, regime: Regime) -> float:
        """No split into stages does with less on every device: what the neediest position needs in its leanest stage.

        Args:
            regime: `held` does not matter: one micro-batch is in flight at least.
        """
        given = None if regime.recompute is None else {mode != "none" for mode in regime.recompute}
        ways = [self.peak_bytes(regime, held=1, again=again) for again in (False, True) if given in (None, {again})]
        peak = np.minimum.reduce(ways) if ways else np.zeros_like(self.walk)
        peak[np.arange(self.count)[:, None] >= np.arange(self.count + 1)[None, :]] = np.inf
        # [p, p + 1]: the least over the stages that begin at p or before and end after it
        least = np.minimum.accumulate(peak, axis=0)
        least = np.minimum.accumulate(least[:, ::-1], axis=1)[:, ::-1]
        return float(np.diagonal(least, 1).max())

    def position(self, operation: int) -> int:
        """The position from which a stage that begins at an operation is costed (hand-made cuts lie between two)."""
        return int(np.searchsorted(self.starts, operation, side="right")) - 1

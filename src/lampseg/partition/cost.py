"""The cost model: time and bytes of every possible stage, from the recorded operations alone."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lampseg.partition.graph import INPUT, Graph
from lampseg.partition.plan import Recompute
from lampseg.partition.schedule import Schedule, warm_up


@dataclass(frozen=True)
class Speed:
    """What a device achieves on such networks; only the ratio matters for where to cut."""

    flops_per_second: float
    bytes_per_second: float


# Achieved, not peak: dense fp32 convolutions on one CPU core, and TF32/bf16 convolutions on a data-centre GPU.
SPEEDS = {"cpu": Speed(4e10, 6e9), "cuda": Speed(6e13, 1.2e12)}


@dataclass(frozen=True)
class Training:
    """How a mini-batch runs: what the memory of a stage depends on besides the operations it holds."""

    micro_batches: int = 1
    schedule: Schedule = "1f1b"
    recompute: Recompute = "none"
    optimizer_bytes_per_parameter_byte: float = 1.0
    """RMSprop without momentum keeps one number for each parameter."""
    loss_bytes_per_logit: float = 0.0
    """What the loss keeps for backward on the last stage, for each number of the network's output."""


class IntervalCosts:
    """Costs of the stage that begins at position i and ends before position j, for all i < j.

    Positions are the operations at which a stage may begin, and the end; a table has shape
    (positions, positions + 1) and is indexed [i, j].
    """

    def __init__(self, graph: Graph, *, state_bytes: dict[str, int], trainable: frozenset[str], speed: Speed):
        self.graph = graph
        self.starts = (0, *graph.cut_positions)
        self.count = len(self.starts)
        segment = np.searchsorted(self.starts, np.arange(len(graph.operations)), side="right") - 1
        self._segment = segment
        forward = np.zeros(self.count)
        backward = np.zeros(self.count)
        flops = np.zeros(self.count)
        largest = np.zeros(self.count)
        for op in graph.operations:
            at = segment[op.index]
            forward[at] += op.flops / speed.flops_per_second + op.bytes_moved / speed.bytes_per_second
            backward[at] += op.backward_flops / speed.flops_per_second
            backward[at] += 2 * op.bytes_moved / speed.bytes_per_second
            flops[at] += op.flops + op.backward_flops
            largest[at] = max(largest[at], *(out.value.nbytes for out in op.outputs), 0)
        self.forward = self._sums(forward)
        self.backward = self._sums(backward)
        self.flops = self._sums(flops)
        self.saved = self._union((storage.nbytes, storage.savers, None) for storage in graph.saved)
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
        last = len(graph.operations) - 1
        for value in graph.outputs:
            uses.setdefault(value, []).append(last)
        self.received = self._union((graph.values[value].nbytes, ops, value[0]) for value, ops in uses.items())
        self.logits = sum(math.prod(graph.values[value].shape) for value in graph.outputs)
        self.workspace = np.zeros((self.count, self.count + 1))
        for i in range(self.count):
            self.workspace[i, i + 1 :] = np.maximum.accumulate(largest[i:])

    def _sums(self, per_segment: NDArray[np.float64]) -> NDArray[np.float64]:
        total = np.concatenate([[0.0], np.cumsum(per_segment)])
        return np.asarray(total[None, :] - total[:-1, None])

    def _union(self, items: Iterable[tuple[int, Iterable[int], int | None]]) -> NDArray[np.float64]:
        """Bytes of the distinct items that a stage touches; with a producer, only if it lies before the stage."""
        table = np.zeros((self.count, self.count + 1))
        for nbytes, operations, producer in items:
            previous = -1 if producer is None else self._segment[producer] if producer != INPUT else 0
            for at in sorted({int(self._segment[op]) for op in operations}):
                if at > previous:
                    table[previous + 1 : at + 1, at + 1] += nbytes  # the first touch, seen from these starts
                    previous = at
        return np.asarray(np.cumsum(table, axis=1))

    def seconds(self, training: Training) -> NDArray[np.float64]:
        """Time of one micro-batch's forward and backward."""
        again = 1 if training.recompute != "none" else 0
        return (1 + again) * self.forward + self.backward

    def peak_bytes(self, training: Training, *, stage: int, stages: int) -> NDArray[np.float64]:
        """Peak memory of a stage: state, gradients, optimizer, activations in flight, boundary, workspace."""
        held = warm_up(training.schedule, stage=stage, stages=stages, micro_batches=training.micro_batches)
        state = self.state + self.trainable * (1 + training.optimizer_bytes_per_parameter_byte)
        loss = training.loss_bytes_per_logit * self.logits if stage == stages - 1 else 0.0
        if training.recompute == "none":
            kept = held * (self.saved + loss)
        else:
            kept = held * self.received + self.saved + loss
        return np.asarray(state + kept + self.received + 2 * self.workspace)

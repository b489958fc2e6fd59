"""What a dry run found: the numbered operations of one forward pass, and the values they pass to each other."""

import hashlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from lampseg.recording.kernel import Kernel

ValueId = tuple[int, int]
"""(operation number, output number); operation -1 is the network's input."""

INPUT = -1


@dataclass(frozen=True)
class Value:
    """A tensor that an operation returns: enough to allocate it, without its data."""

    id: ValueId
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    requires_grad: bool
    device: torch.device
    """Where the network would have it: the device of the run, or the CPU if it made it there."""

    @property
    def nbytes(self) -> int:
        """Size in bytes when stored contiguously, as it travels between stages."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize

    @property
    def carries_gradient(self) -> bool:
        return self.requires_grad and (self.dtype.is_floating_point or self.dtype.is_complex)


@dataclass(frozen=True)
class NewTensor:
    """An output that did not exist before the operation."""

    value: Value
    fresh: bool
    """It has memory of its own; otherwise it is a view of an argument."""


@dataclass(frozen=True)
class SameTensor:
    """An output that is one of the operation's own input objects: dropout in eval, contiguous, an in-place write.

    `value` is what the object stands for from now on (changed by an in-place write, else as before).
    """

    position: int
    """Which tensor among the flattened arguments."""
    value: Value


@dataclass(frozen=True)
class Operation:
    """One call of a torch function by the network."""

    index: int
    name: str
    module: str
    """Qualified name of the module whose forward made the call, "" for the network itself."""
    reads: tuple[ValueId, ...]
    state: tuple[str, ...]
    """Names of the parameters and buffers read."""
    outputs: tuple[NewTensor | SameTensor, ...]
    result: Any
    """The returned structure with each tensor replaced by its index in `outputs`; the result itself if `plain`."""
    plain: bool
    """It returns no tensor and changes none (a shape query): any rank may replay the recorded result."""
    flops: float = 0.0
    backward_flops: float = 0.0
    """Of the recorded backward; an estimate from the forward where none was recorded."""
    bytes_moved: int = 0
    effect: bool = False
    """A plain one without tensor arguments: it acts on the process (gradients on or off), so every rank runs it."""
    kernels: tuple[Kernel, ...] = ()
    """That its forward runs, in order."""
    backward_kernels: tuple[Kernel, ...] = ()
    """That its backward runs, in order; recorded on request (`lampseg.recording.backward` says whose is which)."""
    forward_extra: int = 0
    backward_extra: int = 0
    """Bytes alive at the peak of its forward or backward, beside what autograd saved and beside parameters, buffers
    and accumulated gradients; recorded on request (`lampseg.recording.backward` has the definition)."""


@dataclass(frozen=True)
class Storage:
    """Memory that backward needs, and the operations that keep it; views of one storage count once."""

    nbytes: int
    savers: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """A recorded forward pass of one network for one input shape."""

    operations: tuple[Operation, ...]
    values: dict[ValueId, Value]
    input: Value
    outputs: tuple[ValueId, ...]
    """Values that the forward pass returns, in pytree order."""
    output_spec: Any = field(compare=False)
    saved: tuple[Storage, ...]
    pinned: tuple[tuple[int, int], ...]
    """(first, last): no cut may fall after operation `first` and up to `last` (in-place writes and their views)."""
    ready: dict[ValueId, int]
    """The operation after which a value no longer changes, where that is not the one that made it."""
    notes: dict[ValueId, Any] = field(default_factory=dict, compare=False)
    """What a mode around the network knows of each value (`lampseg.recording.around`); empty without one."""
    states: tuple[tuple[int, Any], ...] = field(default=(), compare=False)
    """(operation, what that mode knew before it): where that changes."""
    written: frozenset[str] = frozenset()
    """Buffers that are written in place. Not by batch norm: its kernels do so behind autograd's back."""

    def ready_at(self, value: ValueId) -> int:
        return self.ready.get(value, value[0])

    @cached_property
    def digest(self) -> str:
        """Identifies the sequence of operations, whatever the input's shape."""
        text = "\n".join(f"{op.name} {op.module} {op.state}" for op in self.operations)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def signature(self) -> str:
        """Identifies everything that the stages must agree on to exchange values of this shape."""
        values = sorted((v.id, v.shape, str(v.dtype), v.requires_grad) for v in self.values.values())
        reads = [op.reads for op in self.operations]
        text = repr((self.digest, values, reads, self.outputs, sorted(self.ready.items()), self.pinned))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def state_before(self, operation: int) -> Any:
        """What the mode around the network knows before an operation; None without one."""
        known = [state for index, state in self.states if index <= operation]
        return known[-1] if known else None

    @property
    def writes_input(self) -> bool:
        """Whether the forward pass changes its input in place."""
        return any(first == INPUT for first, _ in self.pinned)

    @cached_property
    def keys(self) -> tuple[Hashable, ...]:
        """For each operation a name that survives a change of shape or mode: (module, function, how many-th)."""
        seen: dict[tuple[str, str], int] = {}
        keys = []
        for op in self.operations:
            pair = (op.module, op.name)
            seen[pair] = seen.get(pair, -1) + 1
            keys.append((*pair, seen[pair]))
        return tuple(keys)

    @cached_property
    def forbidden(self) -> frozenset[int]:
        """Positions where no stage may begin: inside a pinned range, or between two readers of one parameter."""
        closed: set[int] = set()
        for first, last in (*self.pinned, *self._shared_state()):
            closed.update(range(max(first, 0) + 1, last + 1))
        return frozenset(closed)

    def _shared_state(self) -> list[tuple[int, int]]:
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        for op in self.operations:
            for name in op.state:
                first.setdefault(name, op.index)
                last[name] = op.index
        return [(first[name], last[name]) for name in first if last[name] > first[name]]

    @cached_property
    def cut_positions(self) -> tuple[int, ...]:
        """Operations before which a stage may begin: those that do work, outside the forbidden ranges.

        Operations without a kernel (shape queries, views) are left with the operation before them, and so are those
        that read no value (BatchNorm's counter of batches): a stage of these alone would be none.
        """
        work = [op.index for op in self.operations if op.reads and not op.plain and (op.bytes_moved or op.flops)]
        return tuple(index for index in work[1:] if index not in self.forbidden)

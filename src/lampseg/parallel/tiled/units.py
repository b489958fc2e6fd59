"""Units: which operations of a recorded network run together, tile by tile, so that nothing between them is kept.

    inputs -> [concatenation ->] [norm -> [activation ->]] convolution [-> norm] [-> activation] -> output
    inputs -> [concatenation ->] [convolution of kernel 1 ->] convolution [-> norm] [-> activation] -> output

Every value within is read by the next operation of the unit alone. A norm between two convolutions goes to the second:
its values are then made anew in the backward without a convolution. Where several operations read its result (a skip)
it goes to the first, which has to run again. A convolution alone is a unit, too: its library needs less memory for a
tile.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from lampseg.parallel.tiled.activations import KEEP_RESULT, NAMES
from lampseg.recording.graph import Graph, Operation, SameTensor, ValueId

_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})
_NORMS = frozenset({"batch_norm", "instance_norm", "group_norm"})
_NEW = frozenset({"add", "__add__", "mul", "__mul__", *_NORMS, *NAMES})
_CONCATENATIONS = frozenset({"cat", "concat", "concatenate"})


@dataclass(frozen=True)
class Unit:
    """Numbers of operations; None where there is none."""

    cat: int | None
    pointwise: int | None
    norm_before: int | None
    activation_before: int | None
    convolution: int
    norm_after: int | None
    activation_after: int | None
    dead: frozenset[int] = frozenset()
    """Positions among the inputs of those that nothing reads after the unit, in whose memory nothing else lies."""
    unchanged: frozenset[int] = frozenset()
    """Operations that return what lies within the unit as it is, such as a dropout that drops nothing."""

    @cached_property
    def chain(self) -> tuple[int, ...]:
        """Its operations in order."""
        found = (
            self.cat,
            self.pointwise,
            self.norm_before,
            self.activation_before,
            self.convolution,
            self.norm_after,
            self.activation_after,
        )
        return tuple(index for index in found if index is not None)

    @property
    def members(self) -> frozenset[int]:
        return frozenset(self.chain) | self.unchanged

    @property
    def first(self) -> int:
        return self.chain[0]

    @property
    def last(self) -> int:
        return self.chain[-1]


def units_of(graph: Graph) -> tuple[Unit, ...]:
    """The units of a network, in the order in which they end."""
    return tuple(sorted(_Search(graph).run(), key=lambda unit: unit.last))


class _Search:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.readers: dict[ValueId, list[int]] = {}
        self.passing: dict[ValueId, list[int]] = {}
        self.outputs = frozenset(graph.outputs)
        self.memory = _Memory(graph)
        self.taken: set[int] = set()
        for op in graph.operations:
            if _unchanged(op):
                self.passing.setdefault(op.reads[0], []).append(op.index)
                continue
            for value in op.reads:
                self.readers.setdefault(value, []).append(op.index)

    def run(self) -> list[Unit]:
        convolutions = [op for op in self.graph.operations if op.name in _CONVOLUTIONS and _simple(op)]
        found = []
        for op in convolutions:
            for unit in self._candidates(op):
                if self.taken.isdisjoint(unit.chain) and self._undisturbed(unit):
                    self.taken |= unit.members
                    found.append(unit)
                    break
        return found

    def _candidates(self, op: Operation) -> list[Unit]:
        """The unit of a convolution, as long as possible, and shorter ones in case that it is not possible."""
        cat, pointwise, norm, activation = self._before(op)
        after = self._after(op)
        alone = (None, None)
        if pointwise is None and norm is None and after == alone and self._is_pointwise(op):
            reader = self._reader_of(op)
            if reader is not None and reader.name in _CONVOLUTIONS and _simple(reader):
                return []  # it belongs to the next one
        wanted = [
            (cat, pointwise, norm, activation, *after),
            (cat, pointwise, norm, activation, *alone),
            (None, pointwise, norm, activation, *after),
            (None, pointwise, norm, activation, *alone),
            (None, None, None, None, *after),
            (None, None, None, None, *alone),
        ]
        units = []
        for one, two, three, four, five, six in dict.fromkeys(wanted):
            unit = Unit(one, two, three, four, op.index, five, six)
            units.append(replace(unit, unchanged=self._unchanged_within(unit), dead=self._dead_after(unit)))
        return units

    def _before(self, op: Operation) -> tuple[int | None, ...]:
        """Concatenation, convolution of kernel 1, norm and activation that make a convolution's input."""
        pointwise = norm = activation = None
        at = self._made_for(op)
        if at is not None and _simple(at):
            if at.name in NAMES:
                above = self._made_for(at)
                if above is not None and above.name in _NORMS and _simple(above):
                    norm, activation, at = above.index, at.index, self._made_for(above)
            elif at.name in _NORMS:
                norm, at = at.index, self._made_for(at)
            elif at.name in _CONVOLUTIONS and self._is_pointwise(at):
                pointwise, at = at.index, self._made_for(at)
        cat = None
        if at is not None and at.name in _CONCATENATIONS and self._joins_channels(at):
            cat = at.index
        return cat, pointwise, norm, activation

    def _is_pointwise(self, op: Operation) -> bool:
        """Whether a convolution has a kernel of 1 and changes no size; the arguments are looked at when it runs."""
        sizes = self.graph.values[op.reads[0]].shape[2:], op.outputs[0].value.shape[2:]
        return sizes[0] == sizes[1] and [k.taps for k in op.kernels if k.kind == "convolution"] == [1]

    def _after(self, op: Operation) -> tuple[int | None, int | None]:
        """Norm and activation that make something of a convolution's result, unless the next convolution takes them."""
        following = self._reader_of(op)
        norm = activation = None
        last = op
        if following is not None and following.name in _NORMS and _simple(following):
            norm, last = following.index, following
            following = self._reader_of(following)
        if following is not None and following.name in NAMES and _simple(following):
            in_place = isinstance(following.outputs[0], SameTensor)
            if norm is not None or not (in_place or following.name in KEEP_RESULT):  # else nothing would be gained
                activation, last = following.index, following
        if norm is not None:
            reader = self._reader_of(last)
            if reader is not None and reader.name in _CONVOLUTIONS and _simple(reader):
                return None, None
        return norm, activation

    def _made_for(self, op: Operation) -> Operation | None:
        """The operation that makes what `op` reads, if for it alone."""
        value = op.reads[0]
        if value[0] < 0 or value in self.outputs or self.readers.get(value) != [op.index]:
            return None
        maker = self.graph.operations[value[0]]
        return maker if maker.index not in self.taken and len(maker.outputs) == 1 else None

    def _reader_of(self, op: Operation) -> Operation | None:
        """The operation that reads what `op` makes, if it is one."""
        value = op.outputs[0].value.id
        readers = self.readers.get(value, [])
        if value in self.outputs or len(readers) != 1 or readers[0] in self.taken:
            return None
        return self.graph.operations[readers[0]]

    def _joins_channels(self, op: Operation) -> bool:
        """Whether a concatenation may be one along the channels; the arguments are looked at when it runs."""
        whole = op.outputs[0].value.shape
        parts = [self.graph.values[value].shape for value in op.reads]
        return len(whole) > 2 and all(
            len(part) == len(whole) and (part[0], *part[2:]) == (whole[0], *whole[2:]) for part in parts
        )

    def _unchanged_within(self, unit: Unit) -> frozenset[int]:
        values = [self.graph.operations[index].outputs[0].value.id for index in unit.chain[:-1]]
        return frozenset(index for value in values for index in self.passing.get(value, []))

    def _dead_after(self, unit: Unit) -> frozenset[int]:
        reads = self.graph.operations[unit.first].reads
        return frozenset(n for n, value in enumerate(reads) if self._dies(value, unit))

    def _dies(self, value: ValueId, unit: Unit) -> bool:
        """Only of what is sure to have new memory on every device, not just where it was recorded."""
        maker = None if value[0] < 0 else self.graph.operations[value[0]]
        if maker is None or not (maker.index in self.taken or maker.name.startswith("conv") or maker.name in _NEW):
            return False
        alike = self.memory.sharing(value)
        last = max(max(self.readers.get(other, [0])) for other in alike)
        return last <= unit.last and not any(other[0] < 0 or other in self.outputs for other in alike)

    def _undisturbed(self, unit: Unit) -> bool:
        """Whether the unit may run when its last operation is called, as if each had run when it was called."""
        members = unit.members
        inputs = {self.memory.of(value) for value in self.graph.operations[unit.first].reads}
        state = {name for index in unit.chain for name in self.graph.operations[index].state}
        for op in self.graph.operations[unit.first + 1 : unit.last]:
            if op.index in members:
                continue
            if op.effect or self._writes(op, inputs) or not state.isdisjoint(op.state):
                return False
        # A concatenation keeps none of its inputs, so that the network may write to them; a unit keeps them.
        later = () if unit.cat is None else self.graph.operations[unit.last + 1 :]
        return not any(self._writes(op, inputs) for op in later)

    def _writes(self, op: Operation, inputs: set[ValueId]) -> bool:
        """Whether it writes to the memory of a unit's inputs."""
        return op.index in self.memory.writers and any(self.memory.of(value) in inputs for value in op.reads)


class _Memory:
    """Which values share memory, and which operations write to that of an argument."""

    def __init__(self, graph: Graph) -> None:
        self._parent: dict[ValueId, ValueId] = {}
        self.writers = {last for _, last in graph.pinned}
        for op in graph.operations:
            for output in op.outputs:
                if isinstance(output, SameTensor) and output.value.id[0] == op.index:
                    self.writers.add(op.index)
                if isinstance(output, SameTensor) or not output.fresh:
                    for value in op.reads:
                        self._parent[self.of(output.value.id)] = self.of(value)

        self._alike: dict[ValueId, list[ValueId]] = {}
        for value in graph.values:
            self._alike.setdefault(self.of(value), []).append(value)

    def sharing(self, value: ValueId) -> list[ValueId]:
        """All values in its memory, itself too."""
        return self._alike[self.of(value)]

    def of(self, value: ValueId) -> ValueId:
        """One value of those that share its memory."""
        while value in self._parent and self._parent[value] != value:
            value = self._parent[value]
        return value


def _unchanged(op: Operation) -> bool:
    """Whether an operation returns its only argument as it is."""
    return (
        len(op.reads) == 1
        and len(op.outputs) == 1
        and isinstance(op.outputs[0], SameTensor)
        and op.outputs[0].value.id == op.reads[0]
    )


def _simple(op: Operation) -> bool:
    """Whether it makes one tensor of one, besides parameters and buffers."""
    return len(op.reads) == 1 and len(op.outputs) == 1 and not op.plain


def by_member(units: tuple[Unit, ...]) -> Mapping[int, Unit]:
    """The unit of each operation that is in one."""
    return {index: unit for unit in units for index in unit.members}

"""Which stage runs each operation, and which stage holds each parameter; carried over to any input shape and mode."""

from collections.abc import Sequence
from dataclasses import dataclass

from lampseg.errors import UserError
from lampseg.recording.graph import INPUT, Graph, Operation, ValueId


@dataclass(frozen=True)
class Placement:
    """The stage of every operation of one graph; stages hold consecutive operations."""

    graph: Graph
    cuts: tuple[int, ...]
    """The operation at which stages 1, 2, ... begin."""

    @property
    def stages(self) -> int:
        return len(self.cuts) + 1

    def stage_of(self, operation: int) -> int:
        """Stage of an operation number; the input (-1) belongs to the first stage."""
        return 0 if operation == INPUT else sum(1 for cut in self.cuts if cut <= operation)

    def operations_of(self, stage: int) -> tuple[Operation, ...]:
        """The operations of a stage."""
        first, last = (0, *self.cuts)[stage], (*self.cuts, len(self.graph.operations))[stage]
        return self.graph.operations[first:last]

    def owners(self) -> dict[str, int]:
        """The stage that holds each parameter and buffer that the forward pass reads."""
        return {name: self.stage_of(op.index) for op in self.graph.operations for name in op.state}

    def consumers(self) -> dict[ValueId, tuple[int, ...]]:
        """For each value that leaves its stage, the other stages that read it (the last one reads the outputs)."""
        readers: dict[ValueId, set[int]] = {}
        for op in self.graph.operations:
            for value in op.reads:
                readers.setdefault(value, set()).add(self.stage_of(op.index))
        for value in self.graph.outputs:
            readers.setdefault(value, set()).add(self.stages - 1)
        away = {value: stages - {self.stage_of(value[0])} for value, stages in readers.items()}
        return {value: tuple(sorted(stages)) for value, stages in sorted(away.items()) if stages}


def place(graph: Graph, cuts: Sequence[int]) -> Placement:
    """Splits the graph it was planned for; every stage has something to do.

    Raises:
        UserError: a cut is out of range, out of order, or falls where no stage may begin.
    """
    total = len(graph.operations)
    for before, cut in zip((0, *cuts), cuts):
        if not before < cut < total:
            raise UserError(f"cut {cut}: cuts must rise from 1 to {total - 1}, the network's last operation")
        if cut in graph.forbidden:
            op = graph.operations[cut]
            raise UserError(
                f"cut {cut} (`{op.name}` in `{op.module}`) falls between a value and its in-place update, or "
                "between two readers of one parameter: move it before or after"
            )
    return Placement(graph, tuple(cuts))


def transfer(planned: Placement, graph: Graph) -> Placement:
    """Places the same network's graph for another shape or mode, so that every parameter keeps its stage.

    The operations may differ (padding of odd sizes, heads that only run in training), and so may the in-place writes
    that a cut must not separate (dropout in eval mode returns its input): operations that read a parameter decide,
    and a cut between two of them falls at the same call as planned, or the nearest one allowed. A stage may be left
    with nothing to do, for instance one that only holds a head that is not run in eval mode.

    Raises:
        UserError: the network calls its modules in another order for this shape.
    """
    if graph.digest == planned.graph.digest and not graph.forbidden.intersection(planned.cuts):
        return place(graph, planned.cuts)
    owners = planned.owners()
    position = {key: index for index, key in enumerate(graph.keys)}
    cuts: list[int] = []
    for stage, cut in enumerate(planned.cuts, start=1):
        low, high = 0, len(graph.operations)  # the cut must lie in low..high
        for op in graph.operations:
            for name in op.state:
                if owners.get(name, stage) < stage:
                    low = max(low, op.index + 1)
                elif name in owners:
                    high = min(high, op.index)
        if cuts:
            low = max(low, cuts[-1])
        same = next((position[key] for key in planned.graph.keys[cut:] if key in position), high)
        allowed = [at for at in range(low, high + 1) if at not in graph.forbidden]
        if not allowed:
            raise UserError(
                f"the plan's stage {stage} can't be kept for an input of shape {graph.input.shape}: the network "
                "calls its modules in another order there. Make a plan for this shape"
            )
        cuts.append(min(allowed, key=lambda at: abs(at - same)))
    return Placement(graph, tuple(cuts))

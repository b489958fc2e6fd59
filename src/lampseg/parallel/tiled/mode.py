"""Tiled mode: the unmodified network runs on one device, but each of its units as one function, tile by tile.

An operation that begins or continues a unit computes nothing: its arguments are noted, and the network gets a
placeholder of the recorded shape on the meta device. The unit's last operation runs all of them (`unit`). A unit of
which some argument turns out to be none that is known runs operation by operation, as it would without the mode; so
does all that is in no unit. Every call is checked against the recording.
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from lampseg.errors import GraphMismatchError
from lampseg.parallel.randomness import is_random, mix, seeded
from lampseg.parallel.tiled.calls import Noted, Reference, call_of
from lampseg.parallel.tiled.unit import run
from lampseg.parallel.tiled.units import Unit
from lampseg.recording.graph import Graph, Operation, SameTensor, Value, ValueId
from lampseg.recording.kernels import tensors_in
from lampseg.recording.recorder import fill_slots, function_name


@dataclass
class _Pending:
    """What a placeholder stands for."""

    value: Value
    real: Tensor | None = None
    """Once there is one: after the last operation of a unit has written in place."""


_LABEL = "_lampseg_pending"


class TiledMode(TorchFunctionMode):
    """One forward pass of one micro-batch.

    Args:
        graph: recorded for its shape, in the network's present mode, with or without gradients as now.
        units: of the graph, for each operation that is in one.
        tile: planes of the network's input that a tile has; tiles elsewhere have as many voxels.
        device: where the network runs.
        seed: of this micro-batch, for random operations.
        overwrites: whether a unit's output may, without gradients, take the memory of an input that the network does
            not read again.
    """

    def __init__(
        self,
        graph: Graph,
        units: Mapping[int, Unit],
        *,
        tile: int,
        device: torch.device,
        seed: int = 0,
        overwrites: bool = False,
    ) -> None:
        super().__init__()
        self._graph, self._units, self._tile, self._device, self._seed = graph, units, tile, device, seed
        self._overwrites = overwrites and not torch.is_grad_enabled()
        self._noted: dict[int, list[Noted]] = {}
        self._next = 0

    def finish(self, output: Any) -> Any:
        """The network's output; to be called after the forward.

        Raises:
            GraphMismatchError: the forward made fewer calls than were recorded.
        """
        if self._next != len(self._graph.operations):
            raise GraphMismatchError(
                f"the network made {self._next} calls, {len(self._graph.operations)} were recorded: its forward pass "
                "does not depend on the input's shape alone"
            )
        return self._real(output)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        index, name, operations = self._next, function_name(func), self._graph.operations
        if name == "device":  # answered by the fake tensors themselves in the recording, so not numbered
            return self._device_of(args[0])
        if index >= len(operations) or operations[index].name != name:
            recorded = operations[index].name if index < len(operations) else "nothing more"
            raise GraphMismatchError(
                f"call {index} of the network is `{name}`, recorded was `{recorded}`: its forward pass does not "
                "depend on the input's shape alone"
            )
        self._next += 1
        op = operations[index]
        if op.effect:
            return func(*args, **kwargs)
        if op.plain:
            return op.result
        unit = self._units.get(index)
        if unit is None:
            return self._run(op, func, self._real(args), self._real(kwargs))
        if index in unit.unchanged:
            return self._placeholders(op, args, kwargs)
        noted = Noted(op, func, self._referring(args), self._referring(kwargs))
        self._noted.setdefault(unit.first, []).append(noted)
        if index != unit.last:
            return self._placeholders(op, args, kwargs)
        return self._finished(unit, op, args, kwargs)

    def _run(self, op: Operation, func: Any, args: Any, kwargs: Any) -> Any:
        # A custom function may draw numbers inside.
        random = is_random(op.name) or op.name.endswith(".apply")
        with seeded(mix(self._seed, op.index), self._device) if random else contextlib.nullcontext():
            return func(*args, **kwargs)

    def _finished(self, unit: Unit, op: Operation, args: Any, kwargs: Any) -> Any:
        """Runs a unit, or its operations one by one."""
        noted = self._noted.pop(unit.first)
        dead = unit.dead if self._overwrites else frozenset[int]()
        found = call_of(unit, noted, whole=self._graph.input.shape[2:], tile=self._tile, dead=dead)
        out = self._one_by_one(noted) if found is None else run(found.call, found.inputs, slopes=found.slopes)
        (spec,) = op.outputs
        if tuple(out.shape) != spec.value.shape:
            raise GraphMismatchError(
                f"call {op.index} of the network, `{op.name}`, returned shape {tuple(out.shape)}, recorded was "
                f"{spec.value.shape}: its forward pass does not depend on the input's shape alone"
            )
        if isinstance(spec, SameTensor):  # the network may go on with the argument that was written to
            setattr(tensors_in((args, kwargs))[spec.position], _LABEL, _Pending(spec.value, out))
        return out

    def _one_by_one(self, noted: list[Noted]) -> Tensor:
        made: dict[ValueId, Tensor] = {}
        out: Any = None
        while noted:
            each = noted.pop(0)
            args, kwargs = tree_map(partial(_found, made), (each.args, each.kwargs))
            out = self._run(each.op, each.func, args, kwargs)
            made = {each.value.id: out}
        assert isinstance(out, Tensor)
        return out

    def _placeholders(self, op: Operation, args: Any, kwargs: Any) -> Any:
        outputs: list[Tensor] = []
        for spec in op.outputs:
            if isinstance(spec, SameTensor):
                same = tensors_in((args, kwargs))[spec.position]
                if hasattr(same, _LABEL):
                    setattr(same, _LABEL, _Pending(spec.value))
                    outputs.append(same)
                    continue
            with torch._C.DisableTorchFunction():
                value = spec.value
                tensor = torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device="meta")
            setattr(tensor, _LABEL, _Pending(value))
            outputs.append(tensor)
        return fill_slots(op.result, outputs)

    def _real(self, tree: Any) -> Any:
        """With the tensors that placeholders stand for."""

        def real(leaf: Any) -> Any:
            pending: _Pending | None = getattr(leaf, _LABEL, None) if isinstance(leaf, Tensor) else None
            if pending is None:
                return leaf
            assert pending.real is not None, "an operation outside of the unit reads what lies within"
            return pending.real

        return tree_map(real, tree)

    def _referring(self, tree: Any) -> Any:
        """With references for placeholders: which value they stood for at the call."""

        def refer(leaf: Any) -> Any:
            pending: _Pending | None = getattr(leaf, _LABEL, None) if isinstance(leaf, Tensor) else None
            if pending is None:
                return leaf
            return Reference(pending.value) if pending.real is None else pending.real

        return tree_map(refer, tree)

    def _device_of(self, tensor: Tensor) -> torch.device:
        pending: _Pending | None = getattr(tensor, _LABEL, None)
        if pending is None:
            return tensor.device
        return pending.value.device if pending.value.device.type == "cpu" else self._device


def _found(made: Mapping[ValueId, Tensor], leaf: Any) -> Any:
    """What a reference refers to."""
    return made[leaf.value.id] if isinstance(leaf, Reference) else leaf

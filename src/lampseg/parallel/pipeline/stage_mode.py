"""Stage mode: the unmodified network runs, but only the operations of one stage compute.

An operation of this stage runs for real. Any other returns placeholders of the recorded shapes on the meta device,
without computing. A placeholder that an operation of this stage reads is replaced by the real tensor, which another
stage has sent. Every call is checked against the recording: were one rank to do something else than the others, its
messages would no longer match theirs.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lampseg.errors import GraphMismatchError
from lampseg.parallel.pipeline.routes import Routes
from lampseg.parallel.randomness import is_random, mix, seeded
from lampseg.partition.graph import Operation, SameTensor, Value, ValueId
from lampseg.partition.placement import Placement
from lampseg.partition.record import fill_slots, function_name

_LABEL = "_lampseg_value"


class StageMode(TorchFunctionMode):
    """One forward pass of one micro-batch on one stage.

    Args:
        placement: the stage of every operation.
        stage: mine.
        routes: what my stage sends and receives.
        device: where my stage computes.
        receive: gives the tensor of a value that another stage made.
        send: takes a value that others read, once it is final.
        seed: of this micro-batch, for random operations.
        scratch: ids of tensors to be copied before use: a second run of the same forward must not update the
            buffers again (not every kernel says that it writes them: batch_norm does not).
    """

    def __init__(
        self,
        placement: Placement,
        *,
        stage: int,
        routes: Routes,
        device: torch.device,
        receive: Callable[[Value], Tensor],
        send: Callable[[ValueId, Tensor], None],
        seed: int,
        scratch: frozenset[int] = frozenset(),
    ) -> None:
        super().__init__()
        self._operations = placement.graph.operations
        self._values = placement.graph.values
        first = (0, *placement.cuts)[stage]
        last = (*placement.cuts, len(self._operations))[stage]
        self._mine = range(first, last)
        self._routes, self._device, self._seed, self._scratch = routes, device, seed, scratch
        self._receive, self._send = receive, send
        self._sending = {route.value.id for routes_ in routes.sends.values() for route in routes_}
        self._made: dict[ValueId, Tensor] = {}
        self._received: dict[ValueId, Tensor] = {}
        self._next = 0

    def begin(self, x: Tensor) -> Tensor:
        """The network's argument: the input itself on the first stage, a placeholder elsewhere."""
        value = self._values[-1, 0]
        if 0 in self._mine:
            if value.id in self._sending:
                self._made[value.id] = x
                self._send_ready(-1)
            return x
        return self._placeholder(value)

    def finish(self, output: Any) -> Any:
        """The network's output with every tensor real; called on the last stage, after the forward."""
        return tree_map_only(Tensor, self._real, output)

    def check_complete(self) -> None:
        """Raises GraphMismatchError if the forward made fewer calls than were recorded."""
        if self._next != len(self._operations):
            raise GraphMismatchError(
                f"the network made {self._next} calls, {len(self._operations)} were recorded: its forward pass does "
                "not depend on the input's shape alone"
            )

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        index, name = self._next, function_name(func)
        if index >= len(self._operations) or self._operations[index].name != name:
            recorded = self._operations[index].name if index < len(self._operations) else "nothing more"
            raise GraphMismatchError(
                f"call {index} of the network is `{name}`, recorded was `{recorded}`: its forward pass does not "
                "depend on the input's shape alone"
            )
        self._next += 1
        op = self._operations[index]
        if op.plain:
            return op.result
        if index not in self._mine:
            return self._skip(op, args, kwargs or {})
        out = self._run(op, func, args, kwargs or {})
        return out

    def _run(self, op: Operation, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        args, kwargs = tree_map_only(Tensor, self._real, (args, kwargs))
        if is_random(op.name):
            with seeded(mix(self._seed, op.index), self._device):
                out = func(*args, **kwargs)
        else:
            out = func(*args, **kwargs)
        if self._sending:
            tensors = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
            for tensor, spec in zip(tensors, op.outputs, strict=True):
                # By the recording, not by the live object: contiguous() may copy here and not there.
                if spec.value.id in self._sending and spec.value.id not in self._made:
                    self._made[spec.value.id] = tensor
            self._send_ready(op.index)
        for value in op.reads:
            if self._routes.last_read.get(value) == op.index:
                self._received.pop(value, None)
        return out

    def _skip(self, op: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outputs: list[Tensor] = []
        inputs: list[Tensor] | None = None
        for spec in op.outputs:
            if isinstance(spec, SameTensor):
                if inputs is None:
                    inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
                same = inputs[spec.position]
                if same.device.type != "meta" and not isinstance(same, torch.nn.Parameter):
                    outputs.append(same)  # made here, and passed on unchanged by another stage
                    continue
                if hasattr(same, _LABEL):
                    setattr(same, _LABEL, spec.value)  # an in-place write: the object stands for the new value
                    outputs.append(same)
                    continue
            outputs.append(self._placeholder(spec.value))
        return fill_slots(op.result, outputs)

    def _placeholder(self, value: Value) -> Tensor:
        with torch._C.DisableTorchFunction():
            tensor = torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device="meta")
        setattr(tensor, _LABEL, value)
        return tensor

    def _real(self, tensor: Tensor) -> Tensor:
        if tensor.device.type != "meta":
            return tensor.clone() if id(tensor) in self._scratch else tensor
        value: Value | None = getattr(tensor, _LABEL, None)
        if value is None:
            raise GraphMismatchError(
                f"an operation of this stage reads a tensor of shape {tuple(tensor.shape)} that no stage made: the "
                "network keeps tensors between forward passes"
            )
        if value.id not in self._received:
            self._received[value.id] = self._receive(value)
        return self._received[value.id]

    def _send_ready(self, operation: int) -> None:
        for value in dict.fromkeys(route.value.id for route in self._routes.sends.get(operation, ())):
            self._send(value, self._made[value])

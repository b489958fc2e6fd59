"""Stage mode: the unmodified network runs, but only the operations of one stage compute.

An operation of this stage runs for real. Any other returns placeholders of the recorded shapes on the meta device,
without computing. A placeholder that an operation of this stage reads is replaced by the real tensor, which another
stage has sent. Every call is checked against the recording: were one rank to do something else than the others, its
messages would no longer match theirs.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

from lampseg.errors import GraphMismatchError, UserError
from lampseg.parallel.pipeline.routes import Routes
from lampseg.parallel.randomness import is_random, mix, seeded
from lampseg.partition.placement import Placement
from lampseg.recording.graph import INPUT, NewTensor, Operation, SameTensor, Value, ValueId
from lampseg.recording.kernels import storage_of, tensors_in
from lampseg.recording.recorder import fill_slots, function_name

_LABEL = "_lampseg_value"
_ATOMS = (Tensor, int, float, str, type(None), torch.dtype, torch.device)


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
        buffers: what to use in place of buffers (by id), in a second run of the same forward: it must find them as
            the first did, and not update them again.
        drawing: within it another mode draws numbers from a seed, too.
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
        buffers: Mapping[int, Tensor] | None = None,
        drawing: Callable[[int], contextlib.AbstractContextManager[None]] | None = None,
    ) -> None:
        super().__init__()
        self._operations = placement.graph.operations
        self._values = placement.graph.values
        first = (0, *placement.cuts)[stage]
        last = (*placement.cuts, len(self._operations))[stage]
        self._mine = range(first, last)
        self._routes, self._device, self._seed, self._buffers = routes, device, seed, buffers or {}
        self._drawing = drawing
        self._receive, self._send = receive, send
        self._sending = {route.value.id for routes_ in routes.sends.values() for route in routes_}
        self._made: dict[ValueId, Tensor] = {}
        self._sent: set[ValueId] = set()
        self._received: dict[ValueId, Tensor] = {}
        self._next = 0

    def begin(self, x: Tensor | None) -> Tensor:
        """The network's argument: the input itself on the first stage, a placeholder elsewhere."""
        value = self._values[INPUT, 0]
        if x is None:
            return self._placeholder(value)
        if (tuple(x.shape), x.dtype) != (value.shape, value.dtype):
            raise UserError(
                f"input of shape {tuple(x.shape)} and {x.dtype}: the step was announced with {value.shape}, and the "
                f"precision needs {value.dtype}"
            )
        if value.id in self._sending:
            self._made[value.id] = x
            self._send_ready(INPUT)
        return x

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
        kwargs = kwargs or {}
        index, name = self._next, function_name(func)
        if name == "device":  # answered by the fake tensors themselves in the recording, so not numbered
            return self._device_of(args[0])
        if index >= len(self._operations) or self._operations[index].name != name:
            recorded = self._operations[index].name if index < len(self._operations) else "nothing more"
            raise GraphMismatchError(
                f"call {index} of the network is `{name}`, recorded was `{recorded}`: its forward pass does not "
                "depend on the input's shape alone"
            )
        self._next += 1
        op = self._operations[index]
        if op.effect:
            return func(*args, **kwargs)
        if op.plain:
            return op.result
        if index not in self._mine:
            return self._skip(op, args, kwargs)
        return self._run(op, func, args, kwargs)

    def _run(self, op: Operation, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if all(map(_flat, (*args, *kwargs.values()))):  # pytree takes longer than small kernels do
            args = tuple(self._real(arg) if isinstance(arg, Tensor) else arg for arg in args)
            kwargs = {name: self._real(arg) if isinstance(arg, Tensor) else arg for name, arg in kwargs.items()}
        else:
            args, kwargs = tree_map_only(Tensor, self._real, (args, kwargs))
        with self._random(op):
            out = func(*args, **kwargs)
        out = self._checked(op, out, args, kwargs)
        if self._sending:
            for tensor, spec in zip(tensors_in(out), op.outputs, strict=True):
                # By the recording, not by the live object: contiguous() may copy here and not there.
                value = spec.value.id
                if value in self._sending and value not in self._sent:
                    self._made.setdefault(value, tensor)
            self._send_ready(op.index)
        for value in op.reads:
            if self._routes.last_read.get(value) == op.index:
                self._received.pop(value, None)
        return out

    @contextlib.contextmanager
    def _random(self, op: Operation) -> Iterator[None]:
        # A custom function may draw numbers inside.
        if not (is_random(op.name) or op.name.endswith(".apply")):
            yield
            return
        seed = mix(self._seed, op.index)
        with seeded(seed, self._device), contextlib.nullcontext() if self._drawing is None else self._drawing(seed):
            yield

    def _checked(self, op: Operation, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result, if it is of the recorded shapes; with memory of its own where the recorded one had.

        A received tensor is contiguous even if the sent one was not: contiguous() or reshape() may then return
        the same memory where one device would have a copy, and a later write would reach both.
        """
        tensors = tensors_in(out)
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if shapes != [spec.value.shape for spec in op.outputs]:
            recorded = [spec.value.shape for spec in op.outputs]
            raise GraphMismatchError(
                f"call {op.index} of the network, `{op.name}`, returned shapes {shapes}, recorded were {recorded}: its "
                "forward pass does not depend on the input's shape alone"
            )
        if not self._routes.receives:
            return out
        shared = {storage_of(tensor) for tensor in tensors_in((args, kwargs))}
        fresh = (isinstance(spec, NewTensor) and spec.fresh for spec in op.outputs)
        copied = {id(t): t.clone() for t, new in zip(tensors, fresh, strict=True) if new and storage_of(t) in shared}
        return tree_map_only(Tensor, lambda t: copied.get(id(t), t), out) if copied else out

    def _skip(self, op: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        outputs: list[Tensor] = []
        inputs: list[Tensor] | None = None
        for spec in op.outputs:
            if isinstance(spec, SameTensor):
                if inputs is None:
                    inputs = tensors_in((args, kwargs))
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
        # No mode need see it: nothing computes with it, and a rehearsal of many stages makes tens of thousands.
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            tensor = torch.empty_strided(value.shape, value.stride, dtype=value.dtype, device="meta")
        setattr(tensor, _LABEL, value)
        return tensor

    def _real(self, tensor: Tensor) -> Tensor:
        if tensor.device.type != "meta":
            return self._buffers.get(id(tensor), tensor)
        value: Value | None = getattr(tensor, _LABEL, None)
        if value is None:
            raise GraphMismatchError(
                f"an operation of this stage reads a tensor of shape {tuple(tensor.shape)} that no stage made: the "
                "network keeps tensors between forward passes"
            )
        if value.id not in self._received:
            self._received[value.id] = self._receive(value)
        return self._received[value.id]

    def _device_of(self, tensor: Tensor) -> torch.device:
        value: Value | None = getattr(tensor, _LABEL, None)
        if tensor.device.type != "meta":
            return tensor.device
        return value.device if value is not None and value.device.type == "cpu" else self._device

    def _send_ready(self, operation: int) -> None:
        for value in dict.fromkeys(route.value.id for route in self._routes.sends.get(operation, ())):
            self._send(value, self._made.pop(value))
            self._sent.add(value)


def _flat(argument: Any) -> bool:
    """Whether it is a tensor, or surely holds none; False: perhaps it does."""
    if isinstance(argument, tuple | list):
        return all(isinstance(item, int) for item in argument)
    return isinstance(argument, _ATOMS)

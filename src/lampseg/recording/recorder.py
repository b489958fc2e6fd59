"""Recording mode: numbers a network's calls of torch functions; notes the values, parameters and views they share."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

from lampseg.errors import UserError
from lampseg.recording.around import Around
from lampseg.recording.graph import INPUT, Graph, NewTensor, Operation, SameTensor, Storage, Value, ValueId
from lampseg.recording.kernels import Kernels, storage_of, tensors_in

# Effects that can be neither replayed nor sent to another stage.
# fmt: off
_REFUSED = frozenset({
    "__set__", "backward", "detach_", "grad", "grad_fn", "register_hook",
    "register_post_accumulate_grad_hook", "requires_grad_", "resize_", "resize_as_", "retain_grad", "set_",
})
_PLAIN = (
    bool, int, float, complex, str, bytes, type(None), torch.Size, torch.dtype, torch.device, torch.layout,
    torch.memory_format,
)
# fmt: on

_CHECKPOINT = (
    "it changes how autograd keeps tensors, as `torch.utils.checkpoint` does: switch that off (often an argument, such "
    "as `use_checkpoint: false` in network.kwargs) and use `parallel.recompute: all` instead"
)


class Refused(UserError):
    """What the network does can't be split; `record` adds the line."""


class Recorder(TorchFunctionMode):
    """Records one forward pass on fake tensors.

    Args:
        network: whose parameters and buffers are read by name.
        fake_mode: makes the tensors.
        device: where the network would run.
        around: the mode in which it runs, if any.
    """

    def __init__(
        self, network: nn.Module, *, fake_mode: FakeTensorMode, device: torch.device, around: Around | None = None
    ) -> None:
        super().__init__()
        self.fake_mode, self.device, self.around = fake_mode, device, around
        self.kernels = Kernels(self._on_kernel)
        self.modules: list[str] = []
        self.operations: list[Operation] = []
        self.values: dict[ValueId, Value] = {}
        self.pinned: list[tuple[int, int]] = []
        self.ready: dict[ValueId, int] = {}
        self.notes: dict[ValueId, Any] = {}
        self.states: list[tuple[int, Any]] = []
        self.written: set[str] = set()
        self.saved: dict[int, tuple[int, list[int]]] = {}
        self._running = ""
        self._labels: dict[int, ValueId] = {}
        self._by_storage: dict[int, list[tuple[ValueId, Tensor]]] = {}
        self._keep: list[Any] = []  # holds every tensor seen: ids and storages must not be reused
        self._twins: dict[int, Tensor] = {}
        self._names: dict[int, str] = {}
        self._state_storages: dict[int, str] = {}
        self._constant_storages: set[int] = set()
        self._trained = {name for name, _ in network.named_parameters()}
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            self._names[id(tensor)] = name
            self._fake(tensor)

    def begin(self, x: Tensor) -> None:
        self.input = self._label(x, (INPUT, 0))

    def finish(self, leaves: list[Any], spec: Any) -> Graph:
        """The graph, given the network's output as pytree leaves and structure."""
        if not leaves or not all(isinstance(t, Tensor) and id(t) in self._labels for t in leaves):
            raise UserError(
                "the network's forward must return tensors that it computed (or tuples, lists or dicts of them)"
            )
        saved = tuple(Storage(nbytes, tuple(sorted(set(ops)))) for nbytes, ops in self.saved.values())
        return Graph(
            operations=tuple(self._with_final_values(op) for op in self.operations),
            values=self.values,
            input=self.values[self.input.id],
            outputs=tuple(self._labels[id(t)] for t in leaves),
            output_spec=spec,
            saved=saved,
            pinned=tuple(self.pinned),
            ready=self.ready,
            notes=self.notes,
            states=tuple(self.states),
            written=frozenset(self.written),
        )

    def _with_final_values(self, op: Operation) -> Operation:
        """An in-place write may have changed what was noted of a value when it was made."""
        outputs = tuple(dataclasses.replace(out, value=self.values[out.value.id]) for out in op.outputs)
        return dataclasses.replace(op, outputs=outputs)

    @contextmanager
    def saved_tensors(self) -> Iterator[None]:
        """Books every tensor that autograd keeps to the operation that is being recorded."""
        with saved_tensors_hooks(self._pack, _unpack):
            yield

    def _pack(self, tensor: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            storage, nbytes = storage_of(tensor), tensor.untyped_storage().nbytes()
        if storage not in self._state_storages:
            self._keep.append(tensor)
            self.saved.setdefault(storage, (nbytes, []))[1].append(len(self.operations))
        return tensor

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        index, name = len(self.operations), function_name(func)
        self._refuse(name, kwargs)
        given = tensors_in((args, kwargs))
        args, kwargs = tree_map_only(Tensor, self._fake, (args, kwargs))
        inputs = tensors_in((args, kwargs))
        versions = [t._version for t in inputs]
        if self.around is not None and (not self.states or self.states[-1][1] != self.around.state()):
            self.states.append((index, self.around.state()))
        self.kernels.ran = []
        self._running = name
        out = func(*args, **kwargs)
        self._running = ""
        written = [p for p, t in enumerate(inputs) if t._version != versions[p]]
        leaves, spec = tree_flatten(out)
        plain = not written and not any(isinstance(t, Tensor) for t in leaves)
        if plain and not all(isinstance(leaf, _PLAIN) for leaf in leaves):
            raise Refused(
                f"it calls `{name}`, whose result of type {type(out).__name__} only holds in one process: do without"
            )
        # Read the labels before an in-place write changes them.
        reads = tuple(dict.fromkeys(self._labels[id(t)] for t in inputs if id(t) in self._labels))
        state = tuple(dict.fromkeys(self._names[id(t)] for t in given if id(t) in self._names))
        differentiable = sum(1 for t in inputs if t.requires_grad and t.dim() > 1)
        storages = {storage_of(t) for t in inputs} if not plain else set()
        for p in written:
            self._written(inputs[p], index)
        outputs: list[NewTensor | SameTensor] = []
        slots: list[Any] = []
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                slots.append(leaf)
                continue
            slots.append(_Slot(len(outputs)))
            outputs.append(self._output(leaf, inputs, (index, len(outputs)), written, storages))
        kernels = (*self.kernels.ran, *(self.around.messages() if self.around is not None else ()))
        flops = sum((kernel.flops for kernel in kernels), 0.0)
        self.operations.append(
            Operation(
                index=index,
                name=name,
                module=self.modules[-1] if self.modules else "",
                reads=() if plain else reads,
                state=() if plain else state,
                outputs=tuple(outputs),
                result=out if plain else tree_unflatten(slots, spec),
                plain=plain,
                flops=flops,
                backward_flops=flops * min(differentiable, 2),
                bytes_moved=sum(kernel.nbytes for kernel in kernels),
                effect=plain and not inputs,
                kernels=kernels,
            )
        )
        return out

    def _refuse(self, name: str, kwargs: dict[str, Any]) -> None:
        if name == "CheckpointFunction.apply":
            raise Refused(_CHECKPOINT)
        if name in _REFUSED:
            raise Refused(f"it calls `{name}`, whose effect can't be brought to another stage: remove that call")
        if kwargs.get("generator") is not None:
            raise Refused(f"it gives `{name}` a generator of its own: remove that argument, lampseg seeds each call")
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
        if hooks is None or hooks[0] != self._pack:
            raise Refused(_CHECKPOINT)

    def _on_kernel(self, kernel: str, tensors: list[Tensor]) -> None:
        """Every tensor that a kernel reads must have come to it through a torch function that was seen."""
        for tensor in tensors:
            if id(tensor) in self._names:
                raise Refused(
                    f"`{self._running or kernel}` uses `{self._names[id(tensor)]}` without getting it as an argument, "
                    "so that its stage can't be known: pass it as an argument"
                )
            known = id(tensor) in self._labels or storage_of(tensor) in self._state_storages
            if known and not self._running:
                raise Refused(
                    f"it runs `{kernel}` out of torch's sight (TorchScript or an extension): use its Python version"
                )

    def _output(
        self, tensor: Tensor, inputs: list[Tensor], new: ValueId, written: list[int], storages: set[int]
    ) -> NewTensor | SameTensor:
        position = next((p for p, t in enumerate(inputs) if t is tensor), None)
        if position is None:
            return NewTensor(self._label(tensor, new), fresh=storage_of(tensor) not in storages)
        old = self._labels.get(id(tensor))
        if old is None or position in written:  # a parameter or constant passed through, or written in place
            return SameTensor(position, self._label(tensor, new))
        return SameTensor(position, self.values[old])

    def _label(self, tensor: Tensor, value_id: ValueId) -> Value:
        value = _value(tensor, value_id)
        self.values[value_id] = value
        self._labels[id(tensor)] = value_id
        if self.around is not None:
            self.notes[value_id] = self.around.note(tensor)
        self._keep.append(tensor)
        self._by_storage.setdefault(storage_of(tensor), []).append((value_id, tensor))
        return value

    def _written(self, tensor: Tensor, index: int) -> None:
        """Everything that shares the written memory must be in one stage, and is final only after the write."""
        storage = storage_of(tensor)
        if storage in self._constant_storages:
            raise Refused(
                "it changes a tensor that is neither computed in this pass nor a buffer: register it as a buffer"
            )
        if self._state_storages.get(storage) in self._trained:
            raise Refused(
                f"its forward pass changes the parameter `{self._state_storages[storage]}`: compute with a changed copy"
            )
        if storage in self._state_storages:
            self.written.add(self._state_storages[storage])
        aliases = self._by_storage.get(storage, [])
        if aliases:
            self.pinned.append((min(operation for (operation, _), _ in aliases), index))
        for value_id, alias in aliases:
            self.ready[value_id] = index
            self.values[value_id] = dataclasses.replace(self.values[value_id], requires_grad=alias.requires_grad)

    def twin(self, tensor: Tensor) -> Tensor:
        """What stands for a tensor in another pass over the network."""
        known = self._twins.get(id(tensor))
        if known is None and getattr(tensor, "fake_mode", None) is not self.fake_mode:
            known = self._fake(tensor)
        return tensor if known is None else known

    @property
    def parameters(self) -> list[Tensor]:
        """The fake twins of the trainable parameters."""
        return [t for t in self._twins.values() if t.requires_grad and t.is_leaf]

    def is_state(self, tensor: Tensor) -> bool:
        """Whether its memory is that of a parameter or buffer."""
        return storage_of(tensor) in self._state_storages

    def _fake(self, tensor: Tensor) -> Tensor:
        """A fake twin of a parameter, buffer or constant, on the device where the network would run."""
        if id(tensor) in self._labels:
            return tensor
        if id(tensor) in self._twins:
            return self._twins[id(tensor)]
        if getattr(tensor, "fake_mode", None) is self.fake_mode:
            if storage_of(tensor) not in self._state_storages:  # from_numpy and the like: the same on every rank
                self._constant_storages.add(storage_of(tensor))
                self._keep.append(tensor)
            return tensor
        if getattr(tensor, "fake_mode", None) is not None or hasattr(tensor, "_lampseg_value"):
            raise Refused(
                "it keeps a tensor from one forward pass for the next: compute it anew in every pass, or register "
                "it as a buffer"
            )
        name = self._names.get(id(tensor))
        device = self.device if name is not None else tensor.device
        with self.fake_mode, torch.no_grad():
            twin = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=device)
        twin.requires_grad_(tensor.requires_grad)
        self._twins[id(tensor)] = twin
        self._keep.append(tensor)
        if name is not None:
            self._state_storages[storage_of(twin)] = name
        else:
            self._constant_storages.add(storage_of(twin))
        return twin


class _Slot:
    """Stands for the n-th output tensor in a recorded result."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


def fill_slots(result: Any, tensors: list[Tensor]) -> Any:
    """The recorded structure of an operation's result, with tensors put in."""
    if isinstance(result, _Slot):
        return tensors[result.index]
    return tree_map_only(_Slot, lambda slot: tensors[slot.index], result)


def function_name(func: Any) -> str:
    """The name of a torch function; of an attribute that is read, the attribute's."""
    name = getattr(func, "__name__", None) or str(func)
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", name)
    return str(name)


def _value(tensor: Tensor, value_id: ValueId) -> Value:
    return Value(
        value_id, tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.requires_grad, tensor.device
    )


def _unpack(tensor: Tensor) -> Tensor:
    return tensor

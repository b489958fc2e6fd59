"""The dry run: a network's forward pass on fake tensors, its operations numbered in call order and costed.

Nothing is allocated and no device is needed; the network is not changed, and neither are its buffers.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten
from torch.utils.flop_counter import flop_registry

from lampseg.errors import UserError
from lampseg.partition.graph import (
    INPUT,
    Graph,
    NewTensor,
    Operation,
    SameTensor,
    Storage,
    Value,
    ValueId,
)

# Effects that can be neither replayed nor sent to another stage.
_REFUSED = frozenset(
    {"__set__", "backward", "register_hook", "register_post_accumulate_grad_hook", "retain_grad", "set_"}
)


def record(
    network: nn.Module,
    *,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> Graph:
    """Records the forward pass of `network` (in its present train or eval mode) on one input.

    Args:
        network: any module that takes one tensor; its parameters may be real or on the meta device.
        shape: of the input, (N, C, *spatial).
        dtype: of the input.
        device: where the network would run; it need not exist here.
        autocast: the dtype of mixed precision, None without.

    Raises:
        UserError: the network does something that depends on the data, or that can't be split; the message
            names the line of the network.
    """
    device = torch.device(device)
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    kernels = _Kernels()
    recorder = _Recorder(network, fake_mode=fake_mode, kernels=kernels, device=device)
    context = torch.autocast(device.type, dtype=autocast, enabled=autocast is not None)
    with fake_mode:
        x = torch.empty(shape, dtype=dtype, device=device)
    recorder.begin(x)
    try:
        with (
            torch.enable_grad(),
            recorder.saved_tensors(),
            _module_names(network, recorder),
            context,
            fake_mode,
            kernels,
            recorder,
        ):
            output = network(x)
    except UserError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(
            f"{type(network).__name__} can't be recorded for an input of shape {tuple(shape)}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__} "
            f"(at {network_line(error)}). A network that is split must run on any data of a shape in the same "
            "way: if the shape itself is at fault choose another; otherwise avoid decisions that read the values "
            "of tensors"
        ) from error
    return recorder.finish(output)


def network_line(error: BaseException) -> str:
    """The innermost line outside torch and lampseg's own recording: where the network made the call."""
    own = ("/torch/", "/lampseg/partition/", "/lampseg/parallel/")
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not any(part in f.filename.replace("\\", "/") for part in own)]
    if not outside:
        return "an unknown line"
    return f"{outside[-1].filename}:{outside[-1].lineno}, `{outside[-1].line}`"


class _Kernels(TorchDispatchMode):
    """Counts what the kernels under one operation compute (FLOPs) and move (bytes)."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0.0
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in flop_registry:
            self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
        if not func.is_view:
            self.bytes += sum(_nbytes(t) for t in _tensors((args, kwargs, out)))
        return out


class _Recorder(TorchFunctionMode):
    def __init__(
        self, network: nn.Module, *, fake_mode: FakeTensorMode, kernels: _Kernels, device: torch.device
    ) -> None:
        super().__init__()
        self.fake_mode, self.kernels, self.device = fake_mode, kernels, device
        self.modules: list[str] = []
        self.operations: list[Operation] = []
        self.values: dict[ValueId, Value] = {}
        self.pinned: list[tuple[int, int]] = []
        self.ready: dict[ValueId, int] = {}
        self.saved: dict[int, tuple[int, list[int]]] = {}
        self._labels: dict[int, ValueId] = {}
        self._by_storage: dict[int, list[ValueId]] = {}
        self._keep: list[Any] = []  # holds every tensor seen: ids and storages must not be reused
        self._twins: dict[int, Tensor] = {}
        self._names: dict[int, str] = {}
        self._state_storages: dict[int, str] = {}
        named = (*network.named_parameters(), *network.named_buffers())
        for name, tensor in named:
            self._names[id(tensor)] = name
            self._fake(tensor)

    def begin(self, x: Tensor) -> None:
        self.input = self._label(x, (INPUT, 0))

    def finish(self, output: Any) -> Graph:
        leaves, spec = tree_flatten(output)
        if not leaves or not all(isinstance(t, Tensor) and id(t) in self._labels for t in leaves):
            raise UserError(
                "the network's forward must return tensors that it computed (or tuples, lists or dicts of them)"
            )
        saved = tuple(Storage(nbytes, tuple(sorted(set(ops)))) for nbytes, ops in self.saved.values())
        return Graph(
            operations=tuple(self.operations),
            values=self.values,
            input=self.input,
            outputs=tuple(self._labels[id(t)] for t in leaves),
            output_spec=spec,
            saved=saved,
            pinned=tuple(self.pinned),
            ready=self.ready,
        )

    @contextmanager
    def saved_tensors(self) -> Iterator[None]:
        """Books every tensor that autograd keeps to the operation that is being recorded."""

        def pack(tensor: Tensor) -> Tensor:
            storage = _storage(tensor)
            if storage not in self._state_storages:
                self._keep.append(tensor)
                self.saved.setdefault(storage, (tensor.untyped_storage().nbytes(), []))[1].append(len(self.operations))
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        index, name = len(self.operations), function_name(func)
        if name in _REFUSED:
            raise UserError(f"the network calls `{name}`, which can't be split over stages: remove that call")
        given = _tensors((args, kwargs or {}))
        args, kwargs = tree_map_only(Tensor, self._fake, (args, kwargs or {}))
        inputs = _tensors((args, kwargs))
        versions = [t._version for t in inputs]
        self.kernels.flops, self.kernels.bytes = 0.0, 0
        out = func(*args, **kwargs)
        written = [p for p, t in enumerate(inputs) if t._version != versions[p]]
        leaves, spec = tree_flatten(out)
        plain = not written and not any(isinstance(t, Tensor) for t in leaves)
        # Read the labels before an in-place write changes them.
        reads = tuple(dict.fromkeys(self._labels[id(t)] for t in inputs if id(t) in self._labels))
        state = tuple(dict.fromkeys(self._names[id(t)] for t in given if id(t) in self._names))
        differentiable = sum(1 for t in inputs if t.requires_grad and t.dim() > 1)
        for p in written:
            self._written(inputs[p], index)
        outputs: list[NewTensor | SameTensor] = []
        slots: list[Any] = []
        for leaf in leaves:
            if not isinstance(leaf, Tensor):
                slots.append(leaf)
                continue
            slots.append(_Slot(len(outputs)))
            outputs.append(self._output(leaf, inputs, (index, len(outputs)), written))
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
                flops=float(self.kernels.flops),
                backward_flops=float(self.kernels.flops) * min(differentiable, 2),
                bytes_moved=self.kernels.bytes,
            )
        )
        return out

    def _output(self, tensor: Tensor, inputs: list[Tensor], new: ValueId, written: list[int]) -> NewTensor | SameTensor:
        position = next((p for p, t in enumerate(inputs) if t is tensor), None)
        if position is None:
            return NewTensor(self._label(tensor, new))
        old = self._labels.get(id(tensor))
        if old is None or position in written:  # a parameter or constant passed through, or written in place
            return SameTensor(position, self._label(tensor, new))
        return SameTensor(position, self.values[old])

    def _label(self, tensor: Tensor, value_id: ValueId) -> Value:
        value = Value(value_id, tuple(tensor.shape), tuple(tensor.stride()), tensor.dtype, tensor.requires_grad)
        self.values[value_id] = value
        self._labels[id(tensor)] = value_id
        self._keep.append(tensor)
        self._by_storage.setdefault(_storage(tensor), []).append(value_id)
        return value

    def _written(self, tensor: Tensor, index: int) -> None:
        """Everything that shares the written memory must be in one stage, and is final only after the write."""
        aliases = self._by_storage.get(_storage(tensor), [])
        if aliases:
            self.pinned.append((min(operation for operation, _ in aliases), index))
        for alias in aliases:
            self.ready[alias] = index

    def _fake(self, tensor: Tensor) -> Tensor:
        """A fake twin of a parameter, buffer or constant, on the device where the network would run."""
        if id(tensor) in self._labels or (id(tensor) in self._names and id(tensor) in self._twins):
            return self._twins.get(id(tensor), tensor)
        if getattr(tensor, "fake_mode", None) is self.fake_mode:
            return tensor
        if getattr(tensor, "fake_mode", None) is not None or hasattr(tensor, "_lampseg_value"):
            raise UserError(
                "the network keeps a tensor from one forward pass for the next; it can't be split until it "
                "computes such tensors anew in every pass, or registers them as buffers"
            )
        if id(tensor) not in self._twins:
            device = self.device if id(tensor) in self._names else tensor.device
            with self.fake_mode, torch.no_grad():
                twin = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=device)
            twin.requires_grad_(tensor.requires_grad)
            self._twins[id(tensor)] = twin
            self._keep.append(tensor)
            if id(tensor) in self._names:
                self._state_storages[_storage(twin)] = self._names[id(tensor)]
        return self._twins[id(tensor)]


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
    return getattr(func, "__name__", None) or str(func)


@contextmanager
def _module_names(network: nn.Module, recorder: _Recorder) -> Iterator[None]:
    """Keeps `recorder.modules` the stack of names of the modules whose forward is running."""
    handles = []
    for name, module in network.named_modules():

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            recorder.modules.append(name)

        def leave(_module: nn.Module, _args: Any, _out: Any) -> None:
            recorder.modules.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()

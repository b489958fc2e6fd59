"""The fake tensors of dry runs: PyTorch's, with a quicker memory of the calls that it has seen.

PyTorch's own mode remembers calls too, but describing each call and making its result takes it several times as long;
a dry run makes thousands of calls, most of them alike.
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lampseg.recording.fused_norms import FAKES

DEVICE = torch.ops.prim.device.default
"""The operator that asks a fake tensor for its device, several times for each call."""

_FACTORIES_TAKE = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


def fake_device(tensor: Any) -> Any:
    """What PyTorch's mode answers to `DEVICE`; None if the tensor is not fake."""
    if type(tensor) is not FakeTensor:
        return None
    return torch.device("meta") if tensor.fake_mode.in_kernel_invocation else tensor.fake_device


class Watching(TorchDispatchMode):
    """A mode that watches the calls of dry runs."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is ever compiled, and the mark takes time at every call


class _Result(NamedTuple):
    """How to make one tensor that a call returns."""

    argument: int | None
    """It is this argument's memory, or (without a shape) this argument itself; None: it has memory of its own."""
    shape: tuple[int, ...] | None = None
    stride: tuple[int, ...] = ()
    offset: int = 0
    dtype: torch.dtype = torch.float32
    device: torch.device | None = None


class _Recipe(NamedTuple):
    """How to make what a call returns; None among the results stands for None."""

    kind: type | None
    """Tuple or list; None: a single tensor."""
    results: tuple[_Result | None, ...]


class DryMode(FakeTensorMode):
    """A FakeTensorMode without symbolic shapes that takes results from memory where the same call was made before.

    A call is the operator and what describes its arguments: of a tensor the shape, strides, offset, type and device.
    What returns the same for the same description is remembered for the whole process: new tensors, views of one
    argument, arguments that were written. Anything else goes to PyTorch every time.
    """

    _recipes: ClassVar[dict[Hashable, _Recipe | None]] = {}
    _suited: ClassVar[dict[Any, bool]] = {}
    dispatched: ClassVar[int] = 0
    """Calls in this process that were left to PyTorch's mode."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self._theirs = self.cache_enabled
        self._attributes: dict[torch.device, dict[str, Any]] = {}
        """Of a fake tensor on a device, as PyTorch's constructor sets them."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see `Watching`

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is DEVICE and (device := fake_device(args[0])) is not None:
            return device
        key = self._key(func, args, kwargs)
        if key is None:
            return self._dispatched(func, types, args, kwargs, remembered=False)
        recipe = self._recipes.get(key)
        if recipe is not None:
            return self._made(recipe, args)
        new = key not in self._recipes
        out = self._dispatched(func, types, args, kwargs, remembered=new)
        if key not in self._recipes:
            self._recipes[key] = self._recipe(func, args, kwargs, out)
        return out

    def _dispatched(
        self, func: Any, types: Sequence[type], args: Sequence[Any], kwargs: Mapping[str, Any], *, remembered: bool
    ) -> Any:
        """What the call returns, anew; `remembered` by us: one memory of a call will do."""
        DryMode.dispatched += 1
        fake = FAKES.get(func)
        if fake is None:
            self.cache_enabled = self._theirs and not remembered
            return super().__torch_dispatch__(func, types, args, kwargs)
        with self:
            return fake(*args, **kwargs)

    def _key(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable | None:
        """Describes a call; None if its result does not follow from a description."""
        suited = self._suited.get(func)
        if suited is None:
            suited = self._suited[func] = _suited(func)
        if not suited or torch.is_inference_mode_enabled():
            return None
        parts: list[Any] = [func, torch.get_default_dtype()]
        if not self._describe(parts, args):
            return None
        if kwargs:
            parts.extend(kwargs)
            if not self._describe(parts, kwargs.values()):
                return None
        return tuple(parts)

    def _describe(self, parts: list[Any], values: Any) -> bool:
        for value in values:
            kind = type(value)
            if kind is FakeTensor:
                if value.fake_mode is not self or value.constant is not None or value.layout is not torch.strided:
                    return False
                dtype = value.dtype
                if dtype.is_complex:  # may be lazily conjugated
                    return False
                parts += (tuple(value.shape), value.stride(), value.storage_offset(), dtype, value.fake_device)
            elif kind in _FACTORIES_TAKE:
                parts += (kind, value)  # 1, 1.0 and True are equal
            elif kind is list or kind is tuple:
                parts += (kind, len(value))
                if not self._describe(parts, value):
                    return False
            elif isinstance(value, Tensor) or not isinstance(value, _FACTORIES_TAKE):
                return False
            else:
                parts += (kind, value)
        return True

    def _recipe(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> _Recipe | None:
        """How to make what a call returned; None if it must be made by PyTorch."""
        kind = type(out)
        single = kind is FakeTensor
        if not single and kind not in (tuple, list):
            return None
        storages = {t.untyped_storage()._cdata for value in (*args, *kwargs.values()) for t in _tensors(value)}
        results: list[_Result | None] = []
        for tensor in (out,) if single else out:
            if tensor is None:
                results.append(None)
                continue
            if type(tensor) is not FakeTensor or tensor.fake_mode is not self or tensor.constant is not None:
                return None
            result = self._result(func, args, tensor, storages)
            if result is None:
                return None
            results.append(result)
        return _Recipe(None if single else kind, tuple(results))

    def _result(self, func: Any, args: Sequence[Any], tensor: Any, storages: set[int]) -> _Result | None:
        same = next((n for n, value in enumerate(args) if value is tensor), None)
        if same is not None:
            return _Result(same)
        if func._schema.is_mutable or tensor.requires_grad or tensor.dtype.is_complex:
            return None
        storage = tensor.untyped_storage()
        argument = None
        if storage._cdata in storages:
            argument = next((n for n, v in enumerate(args) if type(v) is FakeTensor and _shares(v, tensor)), None)
            if argument is None or not func.is_view:
                return None
        elif func.is_view or storage.nbytes() != _compact_bytes(tensor) or tensor.storage_offset():
            return None
        return _Result(
            argument,
            tuple(tensor.shape),
            tensor.stride(),
            tensor.storage_offset(),
            tensor.dtype,
            tensor.fake_device,
        )

    def _made(self, recipe: _Recipe, args: Sequence[Any]) -> Any:
        made: list[Any] = []
        for result in recipe.results:
            if result is None:
                made.append(None)
            elif result.shape is None:
                assert result.argument is not None
                made.append(args[result.argument])
            else:
                with torch._C._DisableTorchDispatch():
                    if result.argument is None:
                        meta = torch.empty_strided(result.shape, result.stride, dtype=result.dtype, device="meta")
                    else:
                        storage = args[result.argument].untyped_storage()
                        meta = torch.empty((0,), dtype=result.dtype, device="meta")
                        meta.set_(storage, result.offset, result.shape, result.stride)
                    made.append(self._fake(meta, result.device))
        return made[0] if recipe.kind is None else recipe.kind(made)

    def _fake(self, meta: Tensor, device: Any) -> Tensor:
        """`FakeTensor(self, meta, device)`, but the constructor checks and sets everything for the first one only."""
        attributes = self._attributes.get(device)
        if attributes is None:
            first = FakeTensor(self, meta, device)
            self._attributes[device] = dict(first.__dict__)
            return first
        made: Tensor = Tensor._make_subclass(  # type: ignore[attr-defined]
            FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=device
        )
        if self._allow_unsafe_data_ptr_access:
            torch._C._set_warn_deprecated_on_mutable_data_ptr(made)  # type: ignore[attr-defined]
        else:
            torch._C._set_throw_on_mutable_data_ptr(made)  # type: ignore[attr-defined]
        made.__dict__.update(attributes)
        return made


def _suited(func: Any) -> bool:
    """Whether what an operator returns follows from a description of its arguments."""
    if not isinstance(func, torch._ops.OpOverload) or not torch._library.utils.is_builtin(func):
        return False
    tags = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view}
    if tags.intersection(func.tags) or func.name().partition("::")[0] not in ("aten", "prims"):
        return False
    if func.name().startswith(("aten::lift", "aten::set_", "aten::resize", "aten::_local_scalar")):
        return False
    # These return a view or not.
    composite = torch._C.DispatchKey.CompositeImplicitAutograd
    return not (func.is_view and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), composite))


def _tensors(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return [item for item in value if isinstance(item, Tensor)]
    return [value] if isinstance(value, Tensor) else []


def _shares(one: Any, other: Any) -> bool:
    return bool(one.untyped_storage()._cdata == other.untyped_storage()._cdata)


def _compact_bytes(tensor: Any) -> int:
    """Of the memory that a tensor with these strides needs."""
    if 0 in tensor.shape:
        return 0
    last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    return int((last + 1) * tensor.dtype.itemsize)

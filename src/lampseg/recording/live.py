"""Live bytes: how much memory tensors hold at every moment, and at most; on fake tensors as on real ones."""

import threading
import weakref
from collections import deque
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from lampseg.recording.fake_mode import DEVICE, fake_device
from lampseg.recording.kernels import tensors_of

_ADD = torch.ops.aten.add.Tensor


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on, and are alive.

    Every storage counts once, from the kernel that returns it until nothing holds it any more; views are free, and
    so is what shares the memory of a tensor that was not counted (`add` counts one that was made before). A storage
    that is resized counts with its new size. On CUDA and on the CPU, real tensors or fake ones; tensors without a
    storage (sparse ones) or on meta count nothing, and neither does memory that a kernel takes and gives back inside.

    One thing is not counted as it happens: where two gradients of one value add up, autograd writes the sum into the
    first if nothing else holds it, but not while any mode is on. In backward, the result of an addition therefore
    counts towards the peak only if the memory of its arguments is not given back at once.

    Args:
        fake: count fake tensors, too; False where real ones are measured and a dry run may happen in between.
    """

    def __init__(self, *, fake: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._fake = fake
        self._sizes: dict[int, int] = {}
        self._references: dict[int, _Reference] = {}
        # Filled by a C function: an interrupt in a callback written in Python would be lost, with a traceback.
        self._gone: deque[weakref.ref[Any]] = deque()
        self._current = 0
        self._peak = 0
        self._settled = True

    @property
    def current(self) -> int:
        """Bytes alive now."""
        self._release()
        return self._current

    @property
    def peak(self) -> int:
        """The most bytes that were alive at once since the last `reset_peak`."""
        self.settle()
        return self._peak

    def reset_peak(self) -> None:
        self._settled = True
        self._release()
        self._peak = self._current

    def add(self, tensor: Tensor) -> None:
        """Counts a tensor that was made before, such as a parameter, from now on."""
        self._count(tensor)
        self._peak = max(self._peak, self._current)

    def __enter__(self) -> Any:
        _watch_resizes(self)
        return super().__enter__()  # type: ignore[no-untyped-call]

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        _unwatch_resizes(self)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is DEVICE:
            return fake_device(args[0]) or func(*args, **kwargs)
        self.settle()
        out = func(*args, **kwargs)
        self.note(func, tensors_of(args, kwargs), tensors_of((out,), {}))
        return out

    def settle(self) -> None:
        """To be called before a kernel runs: what was alive since the last one is known now."""
        self._release()
        if not self._settled:
            self._settled = True
            self._peak = max(self._peak, self._current)

    def note(self, func: Any, given: list[Tensor], made: list[Tensor]) -> None:
        """Counts what a kernel made; for another mode that sees the kernels (which has called `settle` before it)."""
        self._release()
        with torch._C.DisableTorchFunction():
            foreign: set[int] | None = None
            for tensor in made:
                if tensor.layout is not torch.strided or _on_meta(tensor):
                    continue
                if not self._fake and isinstance(tensor, FakeTensor):
                    continue
                key = tensor.untyped_storage()._cdata
                if key not in self._sizes:
                    if foreign is None:
                        foreign = {t.untyped_storage()._cdata for t in given if t.layout is torch.strided}
                    if key in foreign:
                        continue
                self._count(tensor)
        if func is _ADD and torch._C._current_autograd_node() is not None:
            self._settled = False
        else:
            self._release()
            self._peak = max(self._peak, self._current)

    def _count(self, tensor: Tensor) -> None:
        self._release()  # a new storage may lie where one was that has gone
        storage = tensor.untyped_storage()
        key, nbytes = storage._cdata, storage.nbytes()
        self._current += nbytes - self._sizes.get(key, 0)
        self._sizes[key] = nbytes
        if key not in self._references:
            # PyTorch keeps the Python object of a storage for as long as the storage itself.
            reference = self._references[key] = _Reference(storage, self._gone.append)
            reference.key = key

    def _release(self) -> None:
        """Takes off what has gone since the last call."""
        while self._gone:
            key = cast(_Reference, self._gone.popleft()).key
            self._current -= self._sizes.pop(key)
            del self._references[key]

    def _resized(self, storage: torch.UntypedStorage) -> None:
        self._release()
        key = storage._cdata
        if key in self._sizes:
            self._current += storage.nbytes() - self._sizes[key]
            self._sizes[key] = storage.nbytes()
            self._peak = max(self._peak, self._current)


class _Reference(weakref.ref[Any]):
    """To a storage, and where it lay."""

    __slots__ = ("key",)
    key: int


def _on_meta(tensor: Tensor) -> bool:
    """Whether it has no memory; a fake tensor lies on meta, too, but stands for one on its `fake_device`."""
    device = getattr(tensor, "fake_device", None) or tensor.device
    return bool(device.type == "meta")


_lock = threading.Lock()
_watching: list[LiveBytes] = []
_resize = torch.UntypedStorage.resize_


def _resize_and_tell(storage: torch.UntypedStorage, size: int) -> Any:
    result = _resize(storage, size)
    for mode in list(_watching):
        mode._resized(storage)
    return result


def _watch_resizes(mode: LiveBytes) -> None:
    """A storage that is resized from Python (as FSDP does) passes no dispatcher, so that no mode is told."""
    with _lock:
        _watching.append(mode)
        torch.UntypedStorage.resize_ = _resize_and_tell  # type: ignore[method-assign, assignment]


def _unwatch_resizes(mode: LiveBytes) -> None:
    with _lock:
        _watching.remove(mode)
        if not _watching:
            torch.UntypedStorage.resize_ = _resize  # type: ignore[method-assign]

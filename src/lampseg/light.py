"""Planning with little overhead: without Python's garbage collector, and without loading PyTorch's compiler."""

import gc
import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_COMPILER = "torch._dynamo"
_SETTINGS = "torch._dynamo.config"
_CHECKPOINT = "torch.utils.checkpoint"


@contextmanager
def uncollected() -> Iterator[None]:
    """Within, reference cycles wait: imports and dry runs make millions of objects that stay, and few cycles."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def uncompiled() -> Iterator[None]:
    """Within, PyTorch does not load its compiler for what fake tensors need of it.

    That is the compiler's settings, and a mark on functions that it must not compile; loading it takes a second.
    Whatever else is asked of the compiler loads it as ever.
    """
    if _COMPILER in sys.modules:
        yield
        return
    import torch

    stub = _Stub(Path(torch.__file__).parent / "_dynamo")
    sys.modules[_COMPILER] = stub
    torch._dynamo = stub  # type: ignore[attr-defined, assignment]
    sys.meta_path.insert(0, stub._finder)
    try:
        yield
    finally:
        stub.leave()


class _Stub(types.ModuleType):
    """Stands for the compiler as long as nothing but these two things is asked of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(_COMPILER)
        self.__path__ = [str(folder)]
        self._marked: list[Callable[..., Any]] = []
        self._finder = _Finder()

    def disable(self, *args: Any, **kwargs: Any) -> Any:
        """The function as it is, where PyTorch asks in passing: outside compiled code it runs so anyway."""
        function = args[0] if args else None
        if not isinstance(function, types.FunctionType):
            return self._real().disable(*args, **kwargs)
        if not kwargs and function.__module__ == _CHECKPOINT and function.__closure__:
            return function  # one backward's
        if kwargs != {"wrapping": False}:
            return self._real().disable(*args, **kwargs)
        self._marked.append(function)
        return function

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # looked for in any module
            raise AttributeError(name)
        return getattr(self._real(), name)

    def leave(self) -> None:
        """Leaves everything as the compiler expects to find it."""
        import torch

        if sys.modules.get(_COMPILER) is self:
            del sys.modules[_COMPILER]
        if torch.__dict__.get("_dynamo") is self:
            del torch._dynamo
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for function in self._marked:
            function.__dict__.pop("__dynamo_disable", None)  # where PyTorch keeps the marked function
        self._marked.clear()

    def _real(self) -> Any:
        self.leave()
        return importlib.import_module(_COMPILER)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads the whole compiler where a part of it is imported after all."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{_COMPILER}.") or fullname == _SETTINGS:
            return None
        sys.modules[_COMPILER]._real()  # type: ignore[attr-defined]
        importlib.import_module(fullname)
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing: it is loaded."""

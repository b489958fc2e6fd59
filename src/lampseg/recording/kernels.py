"""What one operation costs: the kernels that run under it, the numbers they compute and the bytes they move."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lampseg.recording.fake_mode import DEVICE, Watching, fake_device
from lampseg.recording.kernel import Kernel
from lampseg.recording.kernel_kinds import kernel_of


class Kernels(Watching):
    """Lists the kernels that run under one operation: what they compute (FLOPs) and move (bytes).

    `on_kernel` is told of every kernel and the tensors it reads, before it runs.
    """

    def __init__(self, on_kernel: Callable[[str, list[Tensor]], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_kernel = on_kernel
        self.ran: list[Kernel] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Fake tensors are Python code: what it calls are no operations of the network.
        with torch._C.DisableTorchFunction():
            if func is DEVICE:
                return fake_device(args[0]) or func(*args, **kwargs)
            given = tensors_of(args, kwargs)
            self.on_kernel(str(func), given)
            out = func(*args, **kwargs)
            made = tensors_of((out,), {})
            if made and not func.is_view:  # a query of sizes moves nothing
                self.ran.append(
                    kernel_of(func._overloadpacket, args, kwargs, out, tensors=[*given, *made], backward=False)
                )
        return out


def tensors_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors of an ATen operator's arguments or results, which are nested at most in lists."""
    found: list[Tensor] = []
    for values in (args, kwargs.values()) if kwargs else (args,):
        for value in values:
            if isinstance(value, Tensor):
                found.append(value)
            elif isinstance(value, list | tuple):
                found.extend(leaf for leaf in value if isinstance(leaf, Tensor))
    return found


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of a structure, in pytree order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> int:
    """Identifies the memory that a tensor and its views share."""
    return int(tensor.untyped_storage()._cdata)

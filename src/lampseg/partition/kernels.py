"""What one operation costs: the kernels that run under it, the numbers they compute and the bytes they move."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Kernels(TorchDispatchMode):
    """Counts what the kernels under one operation compute (FLOPs) and move (bytes).

    `on_kernel` is told of every kernel and the tensors it reads, before it runs.
    """

    def __init__(self, on_kernel: Callable[[str, list[Tensor]], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_kernel = on_kernel
        self.flops = 0.0
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Fake tensors are Python code: what it calls are no operations of the network.
        with torch._C.DisableTorchFunction():
            self.on_kernel(str(func), tensors_in((args, kwargs)))
            out = func(*args, **kwargs)
            packet = func._overloadpacket
            if packet in flop_registry:
                self.flops += flop_registry[packet](*args, **kwargs, out_val=out)
            if not func.is_view and tensors_in(out):  # a query of the device or of sizes moves nothing
                self.bytes += sum(t.numel() * t.element_size() for t in tensors_in((args, kwargs, out)))
        return out


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors of a structure, in pytree order."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> int:
    """Identifies the memory that a tensor and its views share."""
    return int(tensor.untyped_storage()._cdata)

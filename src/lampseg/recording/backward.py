"""The dry run of the backward: which operation's backward runs which kernels, and what is alive at every moment.

The network runs a second time on fake tensors, now with nothing held but what the network and autograd hold, and
autograd's backward after it.
"""

import dataclasses
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from lampseg.recording.fake_mode import DEVICE, Watching, fake_device
from lampseg.recording.graph import Graph
from lampseg.recording.kernel import Kernel
from lampseg.recording.kernel_kinds import kernel_of
from lampseg.recording.kernels import tensors_of
from lampseg.recording.live import LiveBytes
from lampseg.recording.recorder import Recorder, Refused, function_name

_GROUP_NORM_BACKWARD = torch.ops.aten.native_group_norm_backward.default
_next_node: Callable[[], int] = torch._C._autograd._get_sequence_nr  # type: ignore[attr-defined]


class SecondPass:
    """Records what the backward of every operation runs, and the memory alive in its forward and its backward.

    **Whose kernel is which.** Autograd numbers its nodes as they are made, so the nodes of an operation are those
    numbered while it ran (nodes that autograd makes later, for a view whose memory was written, belong to the
    operation that first reads the view after the write). A kernel of the backward belongs to the operation whose node
    runs. The gradients of a value that several operations read are added up by autograd after the node that brings
    the second, third, ... of them: that addition belongs to that node's operation, the earlier reader. Adding to a
    parameter's `.grad` belongs to the operation whose node ran last, which brought the gradient.

    **What is alive.** With A(k) the most bytes alive during the forward (backward) of operation k, and S(k) the bytes
    of the storages of `Graph.saved` that some operation up to and including k keeps,

        forward_extra(k) = A_forward(k) - S(k)        backward_extra(k) = A_backward(k) - S(k)

    S(k) is what autograd has saved once the forward of k ends, and what it still holds while k's backward runs: the
    backward goes through the operations in reverse order. So S(k) + extra(k) is exactly the peak of the whole
    network during k, and its maximum over k that of the forward and the backward. Extra is what Python variables
    hold besides, gradients under way, and what k's kernels return. It is negative where the network drops a result
    that autograd saved something for. Without a kernel in its backward, backward_extra is 0.

    Alive are, each storage once: the tensors that the forward and the backward make, tensors that the network keeps
    beside its parameters and buffers, during the forward its input, and in the backward at first one gradient for
    each output. Not counted: parameters and buffers; gradients once they are in `.grad` (a weight's gradient counts
    while its operation makes it: on top of `.grad` from the second micro-batch on); the input and the outputs during
    the backward, except what autograd saved of them: the caller lets go of them, or its loss keeps them.
    """

    def __init__(self, graph: Graph, recorder: Recorder) -> None:
        self.graph, self.recorder = graph, recorder
        self.live = LiveBytes()
        count = len(graph.operations)
        self._first_node = [0] * (count + 1)
        self._begun = 0
        self._forward_peak = [0] * count
        self._backward_peak = [0] * count
        self._kernels: list[list[Kernel]] = [[] for _ in range(count)]
        self._owner = -1
        self.forward_mode = _Numbering(self)
        self.forward_kernels = _Forward(self)
        self.backward_kernels = _Backward(self)

    def begin(self, name: str) -> None:
        if self._begun == len(self.graph.operations) or name != self.graph.operations[self._begun].name:
            raise Refused(f"its second forward pass differs from the first, where it calls `{name}`")
        self._first_node[self._begun] = _next_node()
        self._begun += 1
        self.live.reset_peak()

    def end(self) -> None:
        self._forward_peak[self._begun - 1] = self.live.peak

    def forward_done(self) -> None:
        if self._begun != len(self.graph.operations):
            raise Refused("its second forward pass ends before the first did")
        self._first_node[-1] = _next_node()

    def twin(self, tensor: Tensor) -> Tensor:
        twin = self.recorder.twin(tensor)
        if twin is not tensor and not self.recorder.is_state(twin):
            self.live.add(twin)
        return twin

    def before_backward_kernel(self) -> None:
        """Finds whose backward runs now; what was alive till now was so during the one before."""
        number = torch._C._current_autograd_node()._sequence_nr()
        if number >= self._first_node[-1]:
            return  # what sums up a gradient has no number: it follows the node that made the gradient
        owner = max(bisect_right(self._first_node, number) - 1, 0)
        if owner != self._owner:
            self.leave_owner()
            self._owner = owner
            self.live.reset_peak()

    def leave_owner(self) -> None:
        around = self.recorder.around
        sent = around.messages() if around is not None else ()
        if self._owner >= 0:
            self._kernels[self._owner].extend(sent)
            self._backward_peak[self._owner] = max(self._backward_peak[self._owner], self.live.peak)

    def backward_kernel(self, kernel: Kernel) -> None:
        if self._owner >= 0:
            self._kernels[self._owner].append(kernel)

    def finish(self) -> Graph:
        """The graph, with what this pass found."""
        self.leave_owner()
        saved = [0] * len(self.graph.operations)
        for storage in self.graph.saved:
            saved[min(storage.savers)] += storage.nbytes
        operations, held = [], 0
        for op, nbytes, kernels in zip(self.graph.operations, saved, self._kernels, strict=True):
            held += nbytes
            backward = self._backward_peak[op.index]
            operations.append(
                dataclasses.replace(
                    op,
                    backward_flops=sum((kernel.flops for kernel in kernels), 0.0),
                    backward_kernels=tuple(kernels),
                    forward_extra=self._forward_peak[op.index] - held,
                    backward_extra=backward - held if backward else 0,
                )
            )
        return dataclasses.replace(self.graph, operations=tuple(operations))


def run_backward(outputs: list[Tensor]) -> None:
    """Runs autograd's backward from a network's outputs, with gradients of unknown content; empties the list.

    The gradients are made by the first node, as a loss does, and nothing but autograd holds them.
    """
    differentiable = [t for t in outputs if t.requires_grad]
    outputs.clear()
    if not differentiable:
        return
    with torch.enable_grad():  # the caller may have switched it off
        root = EmptyLoss.apply(*differentiable)  # type: ignore[no-untyped-call]
    differentiable.clear()
    with torch.autograd.set_multithreading_enabled(False):  # modes are of one thread
        torch.autograd.backward([root], [torch.empty_like(root)])


@contextmanager
def emptied_gradients(parameters: list[Tensor]) -> Iterator[None]:
    """Within, a parameter lets go of its gradient as soon as it has it: gradients have an account of their own."""

    def let_go(parameter: Tensor) -> None:
        parameter.grad = None

    handles = [parameter.register_post_accumulate_grad_hook(let_go) for parameter in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class EmptyLoss(torch.autograd.Function):
    """A loss of no size: any tensors to one empty tensor."""

    @staticmethod
    def of(output: Any) -> Tensor:
        """Of a network's output, as one number."""
        differentiable = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]
        loss: Tensor = EmptyLoss.apply(*differentiable)  # type: ignore[no-untyped-call]
        return loss.sum()

    @staticmethod
    def forward(ctx: Any, *outputs: Tensor) -> Tensor:
        ctx.like = [(t.shape, t.stride(), t.dtype, t.device) for t in outputs]
        return outputs[0].new_empty(0, dtype=torch.float32)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, _gradient: Tensor) -> Any:
        return tuple(
            torch.empty_strided(shape, stride, dtype=dtype, device=device) for shape, stride, dtype, device in ctx.like
        )


class _Numbering(TorchFunctionMode):
    """Tells where operations begin and end, and puts in the fake twins of parameters."""

    def __init__(self, second: SecondPass) -> None:
        super().__init__()
        self.second = second

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.second.begin(function_name(func))
        args, kwargs = tree_map_only(Tensor, self.second.twin, (args, kwargs or {}))
        out = func(*args, **kwargs)
        self.second.end()
        return out


class _Forward(Watching):
    def __init__(self, second: SecondPass) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = second.live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            if func is DEVICE:
                return fake_device(args[0]) or func(*args, **kwargs)
            out = func(*args, **kwargs)
            self.live.note(func, tensors_of(args, kwargs), tensors_of((out,), {}))
        return out


class _Backward(Watching):
    def __init__(self, second: SecondPass) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.second = second

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is DEVICE:
            return fake_device(args[0]) or func(*args, **kwargs)
        if torch._C._current_autograd_node() is None:
            return func(*args, **kwargs)
        second = self.second
        second.live.settle()
        second.before_backward_kernel()
        out = func(*args, **kwargs)
        if func is _GROUP_NORM_BACKWARD and out[0] is not None and out[0].dtype != args[1].dtype:
            # Under mixed precision the real kernel keeps the input's dtype, its fake one doesn't.
            out = (torch.empty_like(args[1]), *out[1:])
        given, made = tensors_of(args, kwargs), tensors_of((out,), {})
        second.live.note(func, given, made)
        if made and not func.is_view:
            second.backward_kernel(
                kernel_of(func._overloadpacket, args, kwargs, out, tensors=[*given, *made], backward=True)
            )
        return out

"""The meter: what a rehearsal of a slab keeps and takes between the beginnings and ends of a network's modules."""

import contextlib
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lampseg.parallel.fake_state import FakeState
from lampseg.parallel.spatial.forecast import Rehearsal
from lampseg.recording.fake_mode import Watching
from lampseg.recording.kernel import Kernel
from lampseg.recording.kernel_kinds import kernel_of
from lampseg.recording.kernels import storage_of, tensors_in, tensors_of
from lampseg.recording.live import LiveBytes

_DEVICE = torch.ops.prim.device.default
_next_node: Callable[[], int] = torch._C._autograd._get_sequence_nr  # type: ignore[attr-defined]


@dataclass
class Point:
    """A moment of the forward, and the segment of the forward and the backward that ends there."""

    alive: int
    node: int
    """Number of the next node that autograd will make."""
    forward_peak: int
    kernels: int
    keeps: bool
    """Whether autograd kept something in it; known of a meter that is early."""
    backward_peak: int = 0
    backward_seconds: float = 0.0


@dataclass
class Call:
    """Of a module."""

    begin: int
    end: int = -1
    """Points."""
    made: int = 0
    """Bytes that it returns and was not given."""
    inputs: list[tuple["weakref.ref[Tensor]", int]] = field(default_factory=list)
    """With their versions, which count what is written to them."""
    writes: bool = False


class Meter(Watching):
    """Measures the segments of a rehearsal between the beginnings and ends of modules.

    Args:
        names: the modules that are watched; with a module that runs again, none inside it.
        early: the backward lets go of what it has taken as a second run's does, which is never later: a second run
            hands out each tensor once, while autograd holds those of a node until it ends.
    """

    def __init__(
        self,
        of: Rehearsal,
        network: nn.Module,
        names: Sequence[str],
        *,
        seconds: Callable[[Kernel], float],
        sent: Callable[[Rehearsal], float],
        early: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of, self.network, self.names, self.early = of, network, frozenset(names), early
        self.points: list[Point] = []
        self.calls: dict[str, list[Call]] = {}
        self._seconds, self._sent = seconds, sent
        self._live = LiveBytes()
        self._kernels = 0
        self._owner: int | None = None
        """In the backward: the segment whose nodes run."""
        self._nodes: list[int] = []
        self._sent_before = 0.0
        self._keeps = False

    def measure(self, fake: FakeState) -> None:
        """Forward and backward."""
        with fake.mode, torch.enable_grad(), self:
            with _hooks(self.network, self.names, enter=self._enter, leave=self._leave):
                inputs = self.of.make()
                with self._handing_out_once() if self.early else contextlib.nullcontext():
                    loss = self.of.run(inputs)
            self._point()
            for calls in self.calls.values():
                for call in calls:
                    call.writes |= _written(call)
            self._nodes = [point.node for point in self.points]
            self._owner = len(self.points) - 1
            self._sent_before = self._sent(self.of)
            with torch.autograd.set_multithreading_enabled(False):  # modes are of one thread
                loss.backward()  # type: ignore[no-untyped-call]
            self._leave_segment()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is _DEVICE:
            return func(*args, **kwargs)
        self._live.settle()
        backward = self._owner is not None
        if backward:
            self._find_segment()
        out = func(*args, **kwargs)
        given, made = tensors_of(args, kwargs), tensors_of((out,), {})
        self._live.note(func, given, made)
        if made and not func.is_view:
            self._kernels += 1
            if self._owner is not None:
                kernel = kernel_of(func._overloadpacket, args, kwargs, out, tensors=[*given, *made], backward=backward)
                self.points[self._owner].backward_seconds += self._seconds(kernel)
        return out

    def _handing_out_once(self) -> Any:
        """Within, what autograd keeps is let go of as soon as the backward takes it."""

        def keep(tensor: Tensor) -> list[Tensor]:
            self._keeps = True
            with torch.no_grad(), torch._C.DisableTorchFunction():
                return [tensor.detach()]  # a result that is kept with its own node would never go

        return torch.autograd.graph.saved_tensors_hooks(keep, lambda kept: kept.pop())

    def _point(self) -> int:
        point = Point(self._live.current, _next_node(), self._live.peak, self._kernels, self._keeps)
        self._keeps = False
        self._live.reset_peak()
        self.points.append(point)
        return len(self.points) - 1

    def _enter(self, name: str, inputs: Any) -> None:
        call = Call(self._point())
        with torch._C.DisableTorchFunction():
            call.inputs = [(weakref.ref(tensor), tensor._version) for tensor in tensors_in(inputs)]
        self.calls.setdefault(name, []).append(call)

    def _leave(self, name: str, inputs: Any, outputs: Any) -> None:
        call = next(call for call in reversed(self.calls[name]) if call.end < 0)
        with torch._C.DisableTorchFunction():
            given = {storage_of(tensor) for tensor in tensors_in(inputs)}
            made = {storage_of(tensor): tensor.untyped_storage().nbytes() for tensor in tensors_in(outputs)}
            call.writes = _written(call)
        call.made = sum(nbytes for key, nbytes in made.items() if key not in given)
        call.end = self._point()

    def _find_segment(self) -> None:
        node = torch._C._current_autograd_node()
        if node is None or node._sequence_nr() >= self._nodes[-1]:
            return  # what sums up a gradient has no number: it follows the node that made the gradient
        owner = bisect_right(self._nodes, node._sequence_nr())
        if owner != self._owner:
            self._leave_segment()
            self._owner = owner

    def _leave_segment(self) -> None:
        assert self._owner is not None
        point, sent = self.points[self._owner], self._sent(self.of)
        point.backward_peak = max(point.backward_peak, self._live.peak)
        point.backward_seconds += sent - self._sent_before
        self._sent_before = sent
        self._live.reset_peak()


def _written(call: Call) -> bool:
    """Whether inputs that are still there were written to since."""
    inputs = [(tensor(), version) for tensor, version in call.inputs]
    return any(tensor is not None and tensor._version != version for tensor, version in inputs)


@contextlib.contextmanager
def _hooks(
    network: nn.Module,
    names: frozenset[str],
    *,
    enter: Callable[[str, Any], None],
    leave: Callable[[str, Any, Any], None],
) -> Iterator[None]:
    """Tells of the calls of modules."""
    handles: list[Any] = []
    for name, module in network.named_modules():
        if name in names:

            def before(_module: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                enter(name, (args, kwargs))

            def after(_module: nn.Module, args: Any, kwargs: Any, out: Any, name: str = name) -> None:
                leave(name, (args, kwargs), out)

            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""The blocks of a network on a slab: what each module takes if it keeps its activations, and if it runs again.

Rehearsals on fake tensors measure it. In the first, everything is kept; it also tells which modules could be worth it:
those that are called once, keep more than what they return, and leave their inputs as they are. In each further one,
such modules that are not inside each other run again; there are as many of them as the deepest lies inside others.
"""

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
from lampseg.partition.stretches import Stretch
from lampseg.recording.fake_mode import Watching
from lampseg.recording.kernel import Kernel
from lampseg.recording.kernel_kinds import kernel_of
from lampseg.recording.kernels import storage_of, tensors_in, tensors_of
from lampseg.recording.live import LiveBytes

WORTH = 0.002
"""A module that keeps less than this part of all activations inside is left alone."""

_DEVICE = torch.ops.prim.device.default
_next_node: Callable[[], int] = torch._C._autograd._get_sequence_nr  # type: ignore[attr-defined]


@dataclass
class _Point:
    """A moment of the forward; the segment of the forward and the backward that ends there."""

    alive: int
    node: int
    """Number of the next node that autograd will make."""
    forward_peak: int
    kernels: int
    backward_peak: int = 0
    backward_seconds: float = 0.0


@dataclass
class _Call:
    """Of a module."""

    begin: int
    end: int = -1
    """Points."""
    made: int = 0
    """Bytes that it returns and was not given."""
    inputs: list[tuple["weakref.ref[Tensor]", int]] = field(default_factory=list)
    """With their versions, which count what is written to them."""
    writes: bool = False


def stretches_of(
    rehearse: Callable[[Sequence[str]], Rehearsal],
    network: nn.Module,
    fake: FakeState,
    *,
    seconds: Callable[[Kernel], float],
    sent: Callable[[Rehearsal], float],
) -> tuple[list[Stretch], int]:
    """Every part of a forward pass in each way it may be done, and the number of the last position.

    Args:
        rehearse: makes a rehearsal in which the modules of these names run again; from then on the network holds fresh
            fake state, without gradients of an earlier one.
        seconds: of a kernel.
        sent: seconds of the messages of a rehearsal so far.
    """
    every = [name for name, _ in network.named_modules() if name]
    first = _Meter(rehearse(()), network, every, seconds=seconds, sent=sent)
    first.measure(fake)
    ways = [
        Stretch(n, n + 1, point.alive - before, max(point.forward_peak, point.backward_peak) - before, 0.0)
        for n, (before, point) in enumerate(zip((0, *(p.alive for p in first.points)), first.points))
    ]
    for level in _levels(first):
        run = _Meter(rehearse(level), network, level, seconds=seconds, sent=sent)
        run.measure(fake)
        for name in level:
            here, there = first.calls[name][0], run.calls[name][0]
            before = run.points[there.begin].alive
            inside = run.points[there.begin + 1 : there.end + 1]
            kept = first.points[here.begin + 1 : here.end + 1]
            more = sum(p.backward_seconds for p in inside) - sum(p.backward_seconds for p in kept)
            ways.append(
                Stretch(
                    here.begin + 1,
                    here.end + 1,
                    inside[-1].alive - before,
                    max(max(p.forward_peak, p.backward_peak) for p in inside) - before,
                    max(more, 0.0),
                    name,
                )
            )
    return ways, len(first.points)


def _levels(first: "_Meter") -> list[tuple[str, ...]]:
    """Modules that may run again, in groups of which none contains another."""
    points = first.points
    least = WORTH * max(point.alive for point in points)
    found: dict[tuple[int, int], str] = {}
    for name, calls in first.calls.items():  # outer modules come first
        call = calls[0]
        spared = points[call.end].alive - points[call.begin].alive - call.made
        if len(calls) == 1 and not call.writes and spared > least:
            found.setdefault((points[call.begin].kernels, points[call.end].kernels), name)
    groups: dict[int, list[str]] = {}
    for (begin, end), name in found.items():
        # By when they run: of a module with several names, only one says what it is part of.
        depth = sum(start <= begin and end <= stop for start, stop in found)
        groups.setdefault(depth, []).append(name)
    return [tuple(groups[depth]) for depth in sorted(groups)]


class _Meter(Watching):
    """Measures the segments of a rehearsal between the beginnings and ends of modules.

    Args:
        names: the modules that are watched; with a module that runs again, none inside it.
    """

    def __init__(
        self,
        of: Rehearsal,
        network: nn.Module,
        names: Sequence[str],
        *,
        seconds: Callable[[Kernel], float],
        sent: Callable[[Rehearsal], float],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.of, self.network, self.names = of, network, frozenset(names)
        self.points: list[_Point] = []
        self.calls: dict[str, list[_Call]] = {}
        self._seconds, self._sent = seconds, sent
        self._live = LiveBytes()
        self._kernels = 0
        self._owner: int | None = None
        """In the backward: the segment whose nodes run."""
        self._nodes: list[int] = []
        self._sent_before = 0.0

    def measure(self, fake: FakeState) -> None:
        """Forward and backward."""
        with fake.mode, torch.enable_grad(), self:
            with _hooks(self.network, self.names, enter=self._enter, leave=self._leave):
                inputs = self.of.make()
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

    def _point(self) -> int:
        point = _Point(self._live.current, _next_node(), self._live.peak, self._kernels)
        self._live.reset_peak()
        self.points.append(point)
        return len(self.points) - 1

    def _enter(self, name: str, inputs: Any) -> None:
        call = _Call(self._point())
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


def _written(call: _Call) -> bool:
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

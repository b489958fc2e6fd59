"""The tally: kernels, kept and peak bytes of any piece of code with a backward, on fake tensors; such as a loss."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lampseg.recording.fake_mode import DEVICE, DryMode, Watching, fake_device
from lampseg.recording.kernel import Kernel
from lampseg.recording.kernel_kinds import kernel_of
from lampseg.recording.kernels import tensors_of
from lampseg.recording.live import LiveBytes


@dataclass(frozen=True)
class Tally:
    """What a forward and its backward take."""

    forward: tuple[Kernel, ...]
    backward: tuple[Kernel, ...]
    saved_bytes: int
    """Alive between the two."""
    extra_bytes: int
    """At most alive beside that."""


def tally(
    make: Callable[[], list[Tensor]],
    run: Callable[[list[Tensor]], Tensor],
    *,
    mode: FakeTensorMode | None = None,
    between: Callable[[], None] = lambda: None,
) -> Tally:
    """Counts `run(make())` and its backward, in a FakeTensorMode: nothing is computed or allocated.

    Args:
        make: the inputs; they are held until `run` returns, and counted as extra unless autograd keeps them.
        run: gives a scalar that requires grad.
        mode: that of other fake tensors that `run` uses.
        between: called after the forward.
    """
    live = LiveBytes()
    forward, backward = _Listing(live, backward=False), _Listing(live, backward=True)
    with mode or DryMode(), torch.enable_grad():
        with forward:
            inputs = make()
            result = run(inputs)
            inputs.clear()
            peak, saved = live.peak, live.current
            live.reset_peak()
        between()
        with backward, torch.autograd.set_multithreading_enabled(False):  # modes are of one thread
            result.backward()  # type: ignore[no-untyped-call]
    return Tally(tuple(forward.ran), tuple(backward.ran), saved, max(peak, live.peak) - saved)


class _Listing(Watching):
    def __init__(self, live: LiveBytes, *, backward: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live, self.backward = live, backward
        self.ran: list[Kernel] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is DEVICE:
            return fake_device(args[0]) or func(*args, **kwargs)
        self.live.settle()
        out = func(*args, **kwargs)
        given, made = tensors_of(args, kwargs), tensors_of((out,), {})
        self.live.note(func, given, made)
        if made and not func.is_view:
            self.ran.append(
                kernel_of(func._overloadpacket, args, kwargs, out, tensors=[*given, *made], backward=self.backward)
            )
        return out

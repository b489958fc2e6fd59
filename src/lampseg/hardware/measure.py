"""Times sample operations on one device, and makes tables of rates from the times."""

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lampseg.hardware.rates import Curve, Dense, Rates, Surface, between, channels_of, family, mover, unfolded_bytes
from lampseg.hardware.samples import Sample
from lampseg.recording.kernel import Kernel
from lampseg.recording.kernel_kinds import kernel_of
from lampseg.recording.kernels import tensors_of

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
_clock = time.perf_counter
_CHAIN = 32
"""Operations on one number, one after the other: what a call costs that does nothing."""
_LEAST = 0.1
"""At least this share of a call's time is taken for work, however large the overhead seems."""


@dataclass(frozen=True)
class Timed:
    """One kernel, and its seconds."""

    kernel: Kernel
    own: str | None
    """As in `Sample.kernel`."""
    seconds: float


@dataclass(frozen=True)
class Small:
    """Costs that do not depend on a size."""

    overhead: float
    backward_overhead: float
    optimizer_seconds_per_byte: float


def typical_seconds(call: Callable[[], object], *, device: torch.device, quick: bool = False) -> float:
    """Time of one call: the lower quartile of several, after a first one for warming up.

    What disturbs a call makes it longer, never shorter, so that a median would be more often wrong. On CUDA the calls
    are timed by events of the stream they run on, so that the host's time is left out.
    """
    begun = _clock()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    first = _clock() - begun
    times: list[float] = []
    for _ in range(2 if quick else 3 if first > 0.2 else 5 if first > 0.01 else 15):
        if device.type == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            end.synchronize()
            times.append(float(start.elapsed_time(end)) / 1000)
        else:
            begun = _clock()
            call()
            times.append(_clock() - begun)
    return max(sorted(times)[len(times) // 4], 1e-9)


def time_sample(sample: Sample, *, device: torch.device, dtype: torch.dtype, quick: bool = False) -> list[Timed]:
    """Its forward, and its backward where it has one."""
    tensors = sample.tensors(device=device, dtype=dtype)
    with _Kernels() as forward:
        out = sample.call(*tensors)
    timed = [_timed(forward, sample, typical_seconds(lambda: sample.call(*tensors), device=device, quick=quick))]
    if sample.writes:
        return timed
    wanted = [t for t in tensors if t.requires_grad]
    gradient = torch.randn_like(out)

    def back() -> object:
        return torch.autograd.grad(out, wanted, gradient, retain_graph=True)

    with _Kernels(backward=True) as backward:
        back()
    if not backward.ran:  # the gradient is passed on as it is
        return timed
    return [*timed, _timed(backward, sample, typical_seconds(back, device=device, quick=quick))]


def time_small(*, device: torch.device, quick: bool = False) -> Small:
    """A call that does nothing, forward and backward, and the optimizer."""
    x = torch.zeros(1, device=device, requires_grad=True)

    def chain() -> Tensor:
        y = x
        for _ in range(_CHAIN):
            y = F.leaky_relu(y)
        return y

    end = chain()
    forward = typical_seconds(chain, device=device) / _CHAIN
    backward = typical_seconds(lambda: torch.autograd.grad(end, x, retain_graph=True), device=device) / _CHAIN
    parameters = [torch.zeros(2**14 if quick else 2**18, device=device, requires_grad=True) for _ in range(8)]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.RMSprop(parameters, lr=1e-6)
    step = typical_seconds(lambda: optimizer.step(), device=device, quick=quick)
    return Small(forward, backward, step / sum(p.numel() * p.element_size() for p in parameters))


def fit(times: Iterable[Timed], small: Small, *, itemsize: int, asynchronous: bool = False) -> Rates:
    """Tables that give these times back: exact at the points of the channels, and nearly so for larger sizes.

    Args:
        asynchronous: the host starts kernels ahead of the device (CUDA), so that a time is all work, if it is no less
            than the overhead.
    """
    dense: dict[str, list[tuple[Kernel, float, float]]] = defaultdict(list)
    moved: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for timed in times:
        kernel = timed.kernel
        overhead = small.backward_overhead if kernel.backward else small.overhead
        work = timed.seconds if asynchronous else max(timed.seconds - overhead, _LEAST * timed.seconds)
        if kernel.flops:
            slow = kernel.fallback and kernel.taps > 1
            nbytes = unfolded_bytes(kernel, itemsize=itemsize) if slow else float(kernel.nbytes)
            dense[family(kernel, slow=kernel.fallback)].append((kernel, nbytes, work))
        else:
            moved[_key(timed)][float(kernel.nbytes)].append(kernel.nbytes / work)
    return Rates(
        {key: _dense(points) for key, points in dense.items()},
        {key: _curve(points) for key, points in moved.items()},
        small.overhead,
        small.backward_overhead,
        small.optimizer_seconds_per_byte,
        asynchronous,
    )


def _dense(points: list[tuple[Kernel, float, float]]) -> Dense:
    """What larger calls of the same channels take on top is spill; the smallest call gives the rate of its channels."""
    by_channels: dict[tuple[int, int], list[tuple[float, float, float]]] = defaultdict(list)
    for kernel, nbytes, seconds in points:
        by_channels[channels_of(kernel)].append((nbytes, kernel.flops, seconds))
    found: list[tuple[float, float]] = []
    for calls in by_channels.values():
        calls.sort()
        (smallest, work, took), *larger = calls
        if larger:
            found.append((smallest, 0.0))
            found += [(nbytes, max(0.0, s - took * flops / work) / nbytes) for nbytes, flops, s in larger]
    sizes: list[float] = []
    costs: list[float] = []
    for size, cost in sorted(found) or [(1.0, 0.0)]:
        if not sizes or size > sizes[-1]:
            sizes.append(size)
            costs.append(max(cost, costs[-1]) if costs else cost)
    rates = {}
    for channels, ((nbytes, flops, seconds), *_) in by_channels.items():
        spill = nbytes * between(sizes, costs, nbytes)
        rates[channels] = flops / max(seconds - spill, _LEAST * seconds)
    inputs = tuple(float(i) for i in sorted({i for i, _ in rates}))
    outputs = tuple(float(o) for o in sorted({o for _, o in rates}))
    table = tuple(tuple(_nearest(rates, i, o) for o in outputs) for i in inputs)
    return Dense(Surface(inputs, outputs, table), tuple(sizes), tuple(costs))


def _nearest(rates: dict[tuple[int, int], float], inputs: float, outputs: float) -> float:
    """Of the pair of channels, or of that nearest to it where PyTorch took another path for it."""
    return rates[min(rates, key=lambda pair: abs(math.log(pair[0] / inputs)) + abs(math.log(pair[1] / outputs)))]


def _curve(points: dict[float, list[float]]) -> Curve:
    """A larger call never takes less time than a smaller one, whatever the clock said."""
    sizes = sorted(points)
    speeds: list[float] = []
    for size in sizes:
        speed = statistics.fmean(points[size])
        if speeds:
            speed = min(speed, speeds[-1] * size / sizes[len(speeds) - 1])
        speeds.append(speed)
    return Curve(tuple(sizes), tuple(speeds))


def _key(timed: Timed) -> str:
    kernel = timed.kernel
    if timed.own is None:
        return mover(kernel, {})
    return timed.own if timed.own.endswith("_") else f"{timed.own}/{'backward' if kernel.backward else 'forward'}"


class _Kernels(TorchDispatchMode):
    """Lists the kernels that run inside, as a dry run does."""

    def __init__(self, *, backward: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.backward = backward
        self.ran: list[Kernel] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        made = tensors_of((out,), {})
        if made and not func.is_view:
            given = tensors_of(args, kwargs)
            packet = func._overloadpacket
            self.ran.append(kernel_of(packet, args, kwargs, out, tensors=[*given, *made], backward=self.backward))
        return out


def _timed(kernels: _Kernels, sample: Sample, seconds: float) -> Timed:
    """The call's main kernel; it shares the time with others only if they multiply matrices, too."""
    main = max(kernels.ran, key=lambda kernel: (kernel.flops, kernel.nbytes))
    total = sum(kernel.flops for kernel in kernels.ran)
    return Timed(main, sample.kernel, seconds * main.flops / total if total else seconds)

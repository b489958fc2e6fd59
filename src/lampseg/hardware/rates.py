"""How fast one device runs kernels in one precision: measured tables, and the interpolation between their points."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from lampseg.recording.kernel import Kernel

ALLOCATIONS = frozenset({"empty", "empty_like", "empty_strided", "empty_permuted", "new_empty", "new_empty_strided"})
"""Operators that move no bytes, whatever the size of what they return."""

MOVERS = (
    "pointwise", "in_place", "norm/forward", "norm/backward", "pool/forward", "pool/backward", "resample/forward",
    "resample/backward",
)  # fmt: skip
"""Keys that every table of bandwidths has."""

NORM_PASSES = {"norm/forward": 3 / 2, "norm/backward": 5 / 3}
"""How often memory moves a norm's tensors: it reads the input for the statistics, and again; backward both tensors."""
SINGLE_PASS = frozenset(
    {
        "batch_norm_stats",
        "batch_norm_gather_stats_with_counts",
        "batch_norm_elemt",
        "batch_norm_backward_reduce",
        "batch_norm_backward_elemt",
    }
)
"""A norm's passes as operators of their own: each moves its tensors once."""


@dataclass(frozen=True)
class Curve:
    """Values at increasing sizes; between them log-log linear, beyond them constant."""

    sizes: tuple[float, ...]
    values: tuple[float, ...]

    def at(self, size: float) -> float:
        return math.exp(between(self.sizes, [math.log(value) for value in self.values], size))


@dataclass(frozen=True)
class Surface:
    """FLOP/s by input and output channels; between them bilinear in the logarithms, beyond them constant."""

    inputs: tuple[float, ...]
    outputs: tuple[float, ...]
    rates: tuple[tuple[float, ...], ...]
    """rates[i][o] for inputs[i] and outputs[o]."""

    def at(self, inputs: float, outputs: float) -> float:
        rows = [between(self.outputs, [math.log(rate) for rate in row], outputs) for row in self.rates]
        return math.exp(between(self.inputs, rows, inputs))


@dataclass(frozen=True)
class Dense:
    """Convolutions or matrix products of one family: FLOP/s by channels, and what large tensors cost on top.

    Memory that no longer fits the caches, or that the system hands out anew at each call, costs seconds per byte; the
    channels have no part in it.
    """

    surface: Surface
    spill_sizes: tuple[float, ...] = (1.0,)
    """Bytes of the call: its tensors; of a fallback, its unfolded input."""
    spill: tuple[float, ...] = (0.0,)
    """Extra seconds per byte at these sizes, not decreasing; linear in the logarithm of the size."""

    def seconds(self, flops: float, channels: tuple[int, int], nbytes: float) -> float:
        spill = nbytes * between(self.spill_sizes, self.spill, nbytes)
        return flops / self.surface.at(*channels) + spill


@dataclass(frozen=True)
class Rates:
    """One precision. Keys of `dense` are `family(kernel)`, of `moved` `mover(kernel, ...)`."""

    dense: dict[str, Dense]
    moved: dict[str, Curve]
    """Bytes per second by the bytes of the call."""
    overhead: float
    """Seconds of one call that does nothing, forward."""
    backward_overhead: float
    optimizer_seconds_per_byte: float
    """One step of RMSprop, for each byte of the parameters."""
    asynchronous: bool = False
    """The host only starts kernels (CUDA): while one runs, it starts the next, so that only the longer of overhead and
    work counts. What starts no kernel, as an allocation, costs nothing then."""

    def seconds(self, kernel: Kernel, *, itemsize: int, fallback: bool) -> float:
        """One call.

        Args:
            itemsize: bytes of one number.
            fallback: whether the device has the slow path that the kernel may name.
        """
        overhead = self.backward_overhead if kernel.backward else self.overhead
        if kernel.name in ALLOCATIONS or not (kernel.nbytes or kernel.flops):
            return 0.0 if self.asynchronous else overhead
        work = self._work(kernel, itemsize=itemsize, fallback=fallback)
        return max(overhead, work) if self.asynchronous else overhead + work

    def _work(self, kernel: Kernel, *, itemsize: int, fallback: bool) -> float:
        if kernel.flops and kernel.kind in ("convolution", "transposed_convolution", "matmul"):
            slow = fallback and kernel.fallback
            dense = self.dense[self._known(family(kernel, slow=slow))]
            nbytes = unfolded_bytes(kernel, itemsize=itemsize) if slow and kernel.taps > 1 else kernel.nbytes
            return dense.seconds(kernel.flops, channels_of(kernel), nbytes)
        key = mover(kernel, self.moved)
        speed = self.moved[key].at(kernel.nbytes)
        # Curves of norms were measured with operators that make all passes.
        return kernel.nbytes / (speed * NORM_PASSES[key] if kernel.name in SINGLE_PASS else speed)

    def fault(self) -> str | None:
        """What makes these figures impossible; None if nothing does."""
        for kind in ("convolution", "pointwise_convolution", "transposed_convolution"):
            for direction in ("forward", "backward"):
                if not any(f"{kind}/{path}/{direction}" in self.dense for path in ("direct", "fallback")):
                    return f"no rates for {kind}, {direction}"
        if "matmul/direct/forward" not in self.dense:
            return "no rates for matmul/direct/forward"
        for key in MOVERS:
            if key not in self.moved:
                return f"no bandwidth for {key}"
        for key, dense in self.dense.items():
            surface = dense.surface
            rows = [surface.inputs, surface.outputs, dense.spill_sizes, *surface.rates]
            fits = len(surface.rates) == len(surface.inputs) and len(dense.spill) == len(dense.spill_sizes)
            if not fits or any(len(row) != len(surface.outputs) for row in surface.rates) or _least(rows) <= 0:
                return f"the table of {key} is not whole"
        for key, curve in self.moved.items():
            if len(curve.sizes) != len(curve.values) or _least([curve.sizes, curve.values]) <= 0:
                return f"the curve of {key} is not whole"
        return None

    def _known(self, name: str) -> str:
        """A family that was not measured counts as its nearest relative."""
        if name in self.dense:
            return name
        kind, path, direction = name.split("/")
        other = "direct" if path == "fallback" else "fallback"
        relatives = (
            f"{kind}/{other}/{direction}",
            f"convolution/direct/{direction}",
            f"convolution/{other}/{direction}",
        )
        return next(relative for relative in relatives if relative in self.dense)


def family(kernel: Kernel, *, slow: bool) -> str:
    """Of a convolution or matrix product: kind/path/direction.

    Convolutions of one voxel have a family of their own, which holds whichever path PyTorch takes.
    """
    direction = "backward" if kernel.backward and kernel.kind != "matmul" else "forward"
    if kernel.kind == "convolution" and kernel.taps == 1:
        return f"pointwise_convolution/direct/{direction}"
    return f"{kernel.kind}/{'fallback' if slow else 'direct'}/{direction}"


def mover(kernel: Kernel, known: dict[str, Curve]) -> str:
    """Of a kernel that is limited by memory: its own curve if it has one, else that of its kind."""
    direction = "backward" if kernel.backward else "forward"
    name = kernel.name.removesuffix("_backward")
    own = next((key for key in (kernel.name, f"{name}/{direction}") if key in known), None)
    if own is not None:
        return own
    if kernel.kind == "pointwise" or kernel.kind not in ("norm", "pool", "resample"):
        return "in_place" if kernel.name.endswith("_") else "pointwise"
    return f"{kernel.kind}/{direction}"


def moved_bytes(kernel: Kernel) -> float:
    """What memory moves: a norm's tensors several times."""
    if kernel.kind != "norm" or kernel.name in SINGLE_PASS:
        return kernel.nbytes
    return kernel.nbytes * NORM_PASSES[f"norm/{'backward' if kernel.backward else 'forward'}"]


def channels_of(kernel: Kernel) -> tuple[int, int]:
    return (max(kernel.channels[0], 1), max(kernel.channels[1], 1))


def unfolded_bytes(kernel: Kernel, *, itemsize: int) -> float:
    """Size of the matrix that the slow path makes of a convolution's input (of its output, if transposed)."""
    one, other = channels_of(kernel)
    return float((other if kernel.kind == "transposed_convolution" else one) * kernel.taps * kernel.voxels * itemsize)


def between(nodes: Sequence[float], values: Sequence[float], at: float) -> float:
    """Linear in the logarithm of `at`; constant beyond the nodes."""
    if at <= nodes[0]:
        return values[0]
    if at >= nodes[-1]:
        return values[-1]
    i = bisect_right(nodes, at) - 1
    share = math.log(at / nodes[i]) / math.log(nodes[i + 1] / nodes[i])
    return values[i] * (1 - share) + values[i + 1] * share


def _least(rows: Sequence[Sequence[float]]) -> float:
    return min((min(row, default=0.0) for row in rows), default=0.0)

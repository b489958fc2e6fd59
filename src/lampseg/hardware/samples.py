"""The calls that a calibration times: a few real operations of each kind, over sizes and channels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Sample:
    """One operation, and how it is booked."""

    title: str
    """For the progress display."""
    shape: tuple[int, ...]
    """Of its input, (N, C, *spatial)."""
    call: Call
    """Takes the input and the parameters."""
    parameters: tuple[tuple[int, ...], ...] = ()
    kernel: str | None = None
    """ATen operator with bandwidth of its own (its backward included); None books it to its kind."""
    gradient: bool = True
    """Whether the input has a gradient; that of a network's first operation has none."""
    writes: bool = False
    """It overwrites its input and has no backward here."""

    def tensors(self, *, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """New random input and parameters."""
        x = torch.randn(self.shape, device=device, dtype=dtype)
        parameters = [torch.randn(shape, device=device, dtype=dtype) for shape in self.parameters]
        x.requires_grad_(self.gradient and not self.writes)
        return [x, *(p.requires_grad_(not self.writes) for p in parameters)]


def samples(*, kind: str, precision: str, quick: bool) -> Iterator[Sample]:
    """What to time.

    Args:
        kind: cpu or cuda; a GPU needs larger tensors to show its speed.
        precision: of the tensors.
        quick: a coarse set of tiny sizes, for tests of the way, not of the figures.
    """
    yield from _convolutions(kind=kind, precision=precision, quick=quick)
    yield from _movers(kind=kind, precision=precision, quick=quick)
    for size in (64,) if quick else (32, 128, 512):
        yield Sample(f"matrix product {size}", (1024, size), torch.mm, ((size, size),))


def _convolutions(*, kind: str, precision: str, quick: bool) -> Iterator[Sample]:
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    if kind == "cuda":
        inputs, outputs, side = (1, 4, 8, 16, 32, 64, 128, 256), (4, 8, 16, 32, 64, 128, 256), 64
    else:
        inputs, outputs, side = (1, 4, 8, 16, 32, 64), (4, 8, 16, 32, 64), 24
    if quick:
        inputs, outputs, side = (1, 16), (8, 16), 8
    # Batch 2: at batch 1 a CPU may take the slow path.
    for i in inputs:
        for o in outputs:
            yield _convolution(2, i, o, (side * 2 // 3, side, side))
    if not quick:
        for large in (40, 64) if kind == "cpu" else (96, 128):
            yield _convolution(2, 16, 16, (large,) * 3)
    if kind == "cpu" and precision != "bfloat16":
        for i in (1, 32):
            for o in outputs:
                yield _convolution(1, i, o, (side // 2,) * 3)
        for large in () if quick else (18, 25):  # the latter is just below the bound of the slow path
            yield _convolution(1, 32, 8, (large,) * 3)
    for i in (1, 8, 32, 128) if not quick else (1, 16):
        for o in (4, 8, 32, 128) if not quick else (16,):
            yield _convolution(1, i, o, (side,) * 3, kernel=1)
    for i in (8, 32, 128) if not quick else (16,):
        for o in (8, 32, 64) if not quick else (8,):
            yield _transposed(2, i, o, (side // 2,) * 3)
            if kind == "cpu" and precision != "bfloat16":
                yield _transposed(1, i, o, (side // 3,) * 3)
    if not quick:
        yield _convolution(1, 32, 32, (64 if kind == "cpu" else 128,) * 3, kernel=1)
        yield _transposed(1, 32, 8, (40 if kind == "cpu" else 64,) * 3)


def _convolution(batch: int, inputs: int, outputs: int, size: tuple[int, ...], kernel: int = 3) -> Sample:
    def call(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv3d(x, weight, padding=kernel // 2)

    title = f"convolution of {kernel}^3, {inputs} to {outputs} channels"
    weight = (outputs, inputs, *(kernel,) * 3)
    return Sample(title, (batch, inputs, *size), call, (weight,), gradient=inputs > 1)


def _transposed(batch: int, inputs: int, outputs: int, size: tuple[int, ...]) -> Sample:
    def call(x: Tensor, weight: Tensor) -> Tensor:
        return F.conv_transpose3d(x, weight, stride=2)

    weight = (inputs, outputs, 2, 2, 2)
    return Sample(f"transposed convolution, {inputs} to {outputs} channels", (batch, inputs, *size), call, (weight,))


def _movers(*, kind: str, precision: str, quick: bool) -> Iterator[Sample]:
    sizes = ((8, 16),) if quick else ((8, 24), (8, 64), (16, 96)) if kind == "cpu" else ((8, 32), (16, 96), (32, 160))
    for channels, side in sizes:
        shape = (1, channels, side, side, side)
        affine = ((channels,), (channels,))
        made: list[tuple[str, str | None, Call, tuple[tuple[int, ...], ...]]] = [
            ("leaky ReLU", None, lambda x: F.leaky_relu(x, 0.01), ()),
            ("sum of two", "add", lambda x, y: x + y, (shape,)),
            ("mean", "mean", lambda x: x.mean((2, 3, 4)), ()),
            ("concatenation", "cat", lambda x, y: torch.cat((x, y), 1), (shape,)),
            ("batch norm", None, lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True), affine),
            ("group norm", "native_group_norm", lambda x, w, b: F.group_norm(x, 4, w, b), affine),
            ("max pool", None, lambda x: F.max_pool3d(x, 2), ()),
        ]
        if (kind, precision) != ("cpu", "bfloat16"):  # PyTorch has none
            made.append(("average pool", "avg_pool3d", lambda x: F.avg_pool3d(x, 2), ()))
        for title, kernel, call, parameters in made:
            yield Sample(title, shape, call, parameters, kernel)
        rows = (side**3 * channels // 64, 64)
        layer: Any = lambda x, w, b: F.layer_norm(x, (64,), w, b)  # noqa: E731
        yield Sample("layer norm", rows, layer, ((64,), (64,)), "native_layer_norm")
        yield Sample("leaky ReLU in place", shape, lambda x: F.leaky_relu_(x, 0.01), writes=True)
        yield Sample("copy", shape, lambda x, y: x.copy_(y), (shape,), kernel="copy_", writes=True)
        half = (1, channels, *(side // 2,) * 3)
        for mode, own in (("nearest", None), ("trilinear", "upsample_trilinear3d")):
            yield Sample(f"{mode} upsampling", half, _upsampling(mode), (), own)


def _upsampling(mode: str) -> Call:
    return lambda x: F.interpolate(x, scale_factor=2, mode=mode)

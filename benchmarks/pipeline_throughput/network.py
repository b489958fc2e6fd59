"""A U-Net as a sequence of blocks that pass the skips on (the paper's Equation 3): every library can run it."""

from typing import Any

import torch
from torch import Tensor, nn


class Down(nn.Module):
    """Takes (x, skips ...), gives (x at half the size, x, skips ...)."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.convolutions = nn.Sequential(
            nn.Conv3d(inputs, outputs, 3, stride=stride, padding=1),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.01),
            nn.Conv3d(outputs, outputs, 3, padding=1),
            nn.InstanceNorm3d(outputs, affine=True),
            nn.LeakyReLU(0.01),
        )

    def forward(self, *values: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, *skips = flat(values)
        return self.convolutions(x), *((x,) if self.stride > 1 else ()), *skips


class Up(nn.Module):
    """Takes (x, skip, skips ...), gives (x at the skip's size, skips ...)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose3d(inputs, outputs, 2, stride=2)
        self.convolutions = Down(2 * outputs, outputs, stride=1).convolutions

    def forward(self, *values: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, skip, *skips = flat(values)
        return self.convolutions(torch.cat((skip, self.up(x)), 1)), *skips


class Head(nn.Module):
    """Takes (x,), gives the logits."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(inputs, classes, 3, padding=1)

    def forward(self, *values: Tensor | tuple[Tensor, ...]) -> Tensor:
        (x,) = flat(values)
        logits: Tensor = self.convolution(x)
        return logits


class Contiguous(torch.autograd.Function):
    """The same values; the gradient in the ordinary layout."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.contiguous()


class Part(nn.Module):
    """Consecutive blocks, as a stage of torch.distributed.pipelining calls them: with several arguments.

    It sends and receives only tensors in the ordinary layout ("input tensor has to be contiguous").
    """

    def __init__(self, blocks: nn.Sequential) -> None:
        super().__init__()
        self.blocks = blocks

    def forward(self, *values: Tensor) -> Tensor | tuple[Tensor, ...]:
        values = tuple(Contiguous.apply(t) if t.requires_grad else t for t in values)
        result: Tensor | tuple[Tensor, ...] = self.blocks(values)
        return result.contiguous() if isinstance(result, Tensor) else tuple(t.contiguous() for t in result)


def flat(values: tuple[Tensor | tuple[Tensor, ...], ...]) -> tuple[Tensor, ...]:
    """The tensors, whether they came as arguments or as one tuple (nn.Sequential passes that on)."""
    return tuple(t for value in values for t in (value if isinstance(value, tuple | list) else (value,)))


def unet(*, filters: int, classes: int) -> nn.Sequential:
    """Three levels."""
    f = filters
    torch.manual_seed(7)
    return nn.Sequential(
        Down(1, f, stride=1),
        Down(f, 2 * f, stride=2),
        Down(2 * f, 4 * f, stride=2),
        Up(4 * f, 2 * f),
        Up(2 * f, f),
        Head(f, classes),
    )

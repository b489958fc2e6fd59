"""What U-Net and SE-U-Net share: operators for 1, 2 or 3 dimensions, the U shape with skips, the size check.

Nothing here knows of parallelism: a forward is plain tensor code, which others record and split.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from lampseg.errors import UserError

MAX_CHANNELS = 1024
NORM_GROUPS = 8


@dataclass(frozen=True)
class Operators:
    """The module classes of one dimensionality, chosen once for a whole network."""

    dimensions: int
    norm_name: str
    conv: type[nn.Module]
    transposed: type[nn.Module]
    batch_norm: type[nn.Module]
    instance_norm: type[nn.Module]

    def conv3(self, inputs: int, outputs: int, *, stride: int = 1, bias: bool) -> nn.Module:
        """Convolution of kernel 3 that keeps the size, or halves it with stride 2."""
        return self.conv(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=bias)

    def conv1(self, inputs: int, outputs: int, *, stride: int = 1, bias: bool) -> nn.Module:
        """Convolution of kernel 1."""
        return self.conv(inputs, outputs, kernel_size=1, stride=stride, bias=bias)

    def up2(self, inputs: int, outputs: int) -> nn.Module:
        """Transposed convolution, kernel 2 and stride 2, with bias: doubles the size."""
        return self.transposed(inputs, outputs, kernel_size=2, stride=2)

    def norm(self, channels: int) -> nn.Module:
        """The normalization chosen; all three have a learned scale and shift per channel."""
        if self.norm_name == "batch":
            return self.batch_norm(channels)
        if self.norm_name == "instance":
            return self.instance_norm(channels, affine=True)
        return nn.GroupNorm(math.gcd(NORM_GROUPS, channels), channels)

    def conv_norm_act(self, inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
        """Conv3 without bias, norm, LeakyReLU. In place: no backward needs the norm's own output."""
        conv = self.conv3(inputs, outputs, stride=stride, bias=False)
        return nn.Sequential(conv, self.norm(outputs), nn.LeakyReLU(inplace=True))


def operators(dimensions: int, norm: str) -> Operators:
    """The operators for 1, 2 or 3 spatial dimensions and one normalization.

    Raises:
        UserError: another number of dimensions, or an unknown normalization.
    """
    classes: dict[int, tuple[type[nn.Module], ...]] = {
        1: (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, nn.InstanceNorm1d),
        2: (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.InstanceNorm2d),
        3: (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, nn.InstanceNorm3d),
    }
    if dimensions not in classes:
        raise UserError(f"dimensions: {dimensions!r} is not possible; give 1, 2 or 3")
    if norm not in ("batch", "instance", "group"):
        raise UserError(f"norm: {norm!r} is unknown; give `batch`, `instance` or `group`")
    return Operators(dimensions, norm, *classes[dimensions])


def channel_sequence(filters: int, depth: int) -> list[int]:
    """Channels of the encoder blocks, first to last: doubling, at most 1024."""
    return [min(filters * 2**level, MAX_CHANNELS) for level in range(depth + 1)]


class UShape(nn.Module):
    """Encoder blocks e1, e2, ..., decoder blocks each fed with one encoder output, and a tail (paper, Eq. 2).

    Subclasses say what one encoder and one decoder block is. With the default depth of 4 there are five
    encoder and four decoder blocks. Each encoder block but the first halves the size; the first does so with
    `stem_stride=2`, which the tail then undoes.
    """

    stride: tuple[int, ...]
    """Total down-sampling per axis: every spatial size of an input must be a multiple of it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        filters: int,
        *,
        norm: str,
        depth: int,
        stem_stride: int,
        dimensions: int,
    ) -> None:
        super().__init__()
        counts = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "filters": filters,
            "depth": depth,
        }
        for field, value in counts.items():
            least = 2 if field == "filters" else 1
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise UserError(f"{field}: {value!r} is not possible; give a whole number of at least {least}")
        if stem_stride not in (1, 2):
            raise UserError(f"stem_stride: {stem_stride!r} is not possible; give 1 (full resolution) or 2")
        ops = operators(dimensions, norm)
        channels = channel_sequence(filters, depth)
        self.in_channels = in_channels
        self.stride = (stem_stride * 2**depth,) * dimensions
        self.encoders = nn.ModuleList([self.first_encoder(ops, in_channels, filters, stem_stride)])
        self.decoders = nn.ModuleList()
        for shallow, deep in pairwise(channels):
            self.encoders.append(self.encoder(ops, shallow, deep))
            self.decoders.insert(0, self.decoder(ops, deep, shallow))
        self.tail = self.make_tail(ops, filters, out_channels, stem_stride)
        initialize(self)

    def first_encoder(self, ops: Operators, inputs: int, outputs: int, stride: int) -> nn.Module:
        """Block e1: from the image to `outputs` channels, with stride 1 or 2."""
        raise NotImplementedError

    def encoder(self, ops: Operators, inputs: int, outputs: int) -> nn.Module:
        """Any later encoder block: halves the size."""
        raise NotImplementedError

    def decoder(self, ops: Operators, inputs: int, outputs: int) -> nn.Module:
        """One decoder block, called with (deeper value, skip): `outputs` channels at the skip's size."""
        raise NotImplementedError

    def make_tail(self, ops: Operators, inputs: int, outputs: int, stem_stride: int) -> nn.Sequential:
        """From the last decoder block to the classes, at the image's size."""
        act = nn.LeakyReLU(inplace=True)
        if stem_stride == 1:
            return nn.Sequential(act, ops.conv3(inputs, outputs, bias=True))
        middle = min(inputs // 2, 32)
        return nn.Sequential(ops.up2(inputs, middle), act, ops.conv3(middle, outputs, bias=True))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (N, out_channels, *size) of an image (N, in_channels, *size).

        Raises:
            UserError: the shape does not fit the network: the number of axes or channels, or a size that is
                not a multiple of the stride.
        """
        self._check(x.shape)
        skips: list[torch.Tensor] = []
        for encoder in self.encoders:
            x = encoder(x)
            skips.append(x)
        x = skips.pop()
        for decoder in self.decoders:
            x = decoder(x, skips.pop())
        result: torch.Tensor = self.tail(x)
        return result

    def _check(self, shape: Sequence[int]) -> None:
        given = tuple(shape)
        if len(given) != 2 + len(self.stride) or given[1] != self.in_channels:
            axes = ", ".join(["batch", str(self.in_channels), *["size"] * len(self.stride)])
            raise UserError(f"input of shape {given}: the network expects ({axes})")
        size = given[2:]
        if any(s == 0 or s % k for s, k in zip(size, self.stride, strict=True)):
            fitting = tuple(max(1, math.ceil(s / k)) * k for s, k in zip(size, self.stride, strict=True))
            raise UserError(
                f"input of shape {given}: spatial size {size} is not a multiple of the network's stride "
                f"{self.stride}; pad it to {fitting}"
            )


class SkipDecoder(nn.Module):
    """Transposed convolution of the deeper value, concatenation with the skip (Eq. 2's s_i), then a body."""

    def __init__(self, up: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.up = up
        self.body = body

    def forward(self, deeper: torch.Tensor, skip: torch.Tensor) -> torch.Tensor:
        """`deeper` (N, C', *size / 2) and `skip` (N, C, *size) to (N, C, *size)."""
        result: torch.Tensor = self.body(torch.cat([self.up(deeper), skip], dim=1))
        return result


def initialize(network: nn.Module) -> None:
    """Convolution weights as in the released code: He normal (fan in); biases keep PyTorch's default."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for module in network.modules():
        if isinstance(module, kinds):
            nn.init.kaiming_normal_(module.weight)

"""The paper's second network: a U-Net of squeeze-and-excitation residual blocks, for 1, 2 or 3 dimensions."""

import torch
from torch import nn

from lampseg.networks.blocks import Operators, SkipDecoder, UShape

SE_REDUCTION = 16


class SEUNet(UShape):
    """SE-U-Net: the geometry of `UNet` with the squeeze-and-excitation residual blocks of AnatomyNet.

    The LAMP paper names the network ("3D Squeeze-and-Excitation U-Net in AnatomyNet") but neither describes nor
    releases it. It states that the channels double from `filters` with each encoder block, that there are five
    encoder and four decoder blocks, and that the decoder mirrors the encoder. Chosen here:

    - every encoder block is one SE residual block; e1 has stride `stem_stride`, e2 to e5 have stride 2 (in the
      block's first convolution and in its shortcut); channels f, 2f, 4f, 8f, 16f, at most 1024, as in `UNet`;
    - decoder blocks: transposed convolution (kernel 2, stride 2) to the skip's channels, concatenation
      (upsampled value first), one SE residual block to the skip's channels;
    - tail as in `UNet`: transposed convolution to min(f / 2, 32) channels, LeakyReLU, Conv3 to the classes
      (`stem_stride=1`: Conv3 only);
    - SE reduction 16 with at least one hidden unit, ReLU between the two layers, as in Hu et al. (2018).

    Parameters with one input channel and ten classes: 22,993,910 (32 filters), 91,943,394 (64), 244,583,834 (128).

    Args and errors: as for `UNet`; `stem_stride=2` halves the size in e1, 1 keeps the full resolution there.
    """

    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 10,
        filters: int = 32,
        *,
        norm: str = "batch",
        depth: int = 4,
        stem_stride: int = 2,
        dimensions: int = 3,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            filters,
            norm=norm,
            depth=depth,
            stem_stride=stem_stride,
            dimensions=dimensions,
        )

    def first_encoder(self, ops: Operators, inputs: int, outputs: int, stride: int) -> nn.Module:
        """Block e1: an SE residual block like the others."""
        return SEResidualBlock(ops, inputs, outputs, stride=stride)

    def encoder(self, ops: Operators, inputs: int, outputs: int) -> nn.Module:
        """Blocks e2 and deeper: an SE residual block that halves the size."""
        return SEResidualBlock(ops, inputs, outputs, stride=2)

    def decoder(self, ops: Operators, inputs: int, outputs: int) -> nn.Module:
        """Upsampling, concatenation, an SE residual block."""
        return SkipDecoder(ops.up2(inputs, outputs), SEResidualBlock(ops, 2 * outputs, outputs, stride=1))

    def make_tail(self, ops: Operators, inputs: int, outputs: int, stem_stride: int) -> nn.Sequential:
        """As in `UNet`; at full resolution the last block has just been activated, so Conv3 alone."""
        if stem_stride == 1:
            return nn.Sequential(ops.conv3(inputs, outputs, bias=True))
        return super().make_tail(ops, inputs, outputs, stem_stride)


class SEResidualBlock(nn.Module):
    """Residual block: LeakyReLU(SE(norm(conv(LeakyReLU(norm(conv(x)))))) + shortcut(x)).

    The shortcut is the identity, or Conv1 and norm where channels or size change. No convolution has a bias: a
    norm follows each. Source: Zhu et al., AnatomyNet (Medical Physics 2019), SE residual block.
    """

    def __init__(self, ops: Operators, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *ops.conv_norm_act(inputs, outputs, stride=stride),
            ops.conv3(outputs, outputs, bias=False),
            ops.norm(outputs),
        )
        self.excitation = SqueezeExcitation(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            project = ops.conv1(inputs, outputs, stride=stride, bias=False)
            self.shortcut = nn.Sequential(project, ops.norm(outputs))
        self.act = nn.LeakyReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, *size) to (N, outputs, *size / stride)."""
        result: torch.Tensor = self.act(self.excitation(self.body(x)) + self.shortcut(x))
        return result


class SqueezeExcitation(nn.Module):
    """Scales each channel by a gate in (0, 1): global mean, linear, ReLU, linear, sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // SE_REDUCTION)
        self.gate = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, *size) to the same shape."""
        axes = tuple(range(2, x.dim()))
        gate: torch.Tensor = self.gate(x.mean(dim=axes))
        return x * gate.reshape(*gate.shape, *(1 for _ in axes))

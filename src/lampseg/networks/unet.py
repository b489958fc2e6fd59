"""The paper's U-Net, as its authors released it, for 1, 2 or 3 dimensions."""

from torch import nn

from lampseg.networks.blocks import Operators, SkipDecoder, UShape


class UNet(UShape):
    """U-Net of Zhu et al., "LAMP" (MICCAI 2020), Section 2.2 and the released architecture.

    Five encoder blocks, four decoder blocks, a tail; channels f, 2f, 4f, 8f, 16f for f filters, at most 1024:

    - e1: Conv3 with stride 2, norm, LeakyReLU: the encoder starts at half the image's resolution.
    - e2 to e5: Conv3 with stride 2 that changes the channels, norm, LeakyReLU; then a bare Conv3.
    - d4 to d1: transposed convolution (kernel 2, stride 2) to the skip's channels, concatenation (upsampled
      value first), Conv1 to the deeper level's channels, Conv3 to the skip's channels, norm, LeakyReLU; a bare
      Conv3.
    - tail: transposed convolution to min(f / 2, 32) channels, LeakyReLU, Conv3 to the classes.

    Convolutions followed by a norm have no bias, all others have one. LeakyReLU has slope 0.01. Parameters
    with one input channel and ten classes: 22,906,650 (32 filters), 91,604,522 (64), 214,284,906 (128).

    Args:
        in_channels: channels of the image.
        out_channels: classes, background included.
        filters: channels of the first encoder block.
        norm: `batch` (as released), `instance` or `group` (8 groups, or as many as divide the channels).
        depth: down-samplings after the first block; 4 as released.
        stem_stride: 2 as released; 1 runs the first level at full resolution (Section 2.2): e1 is then Conv3,
            norm, LeakyReLU, bare Conv3 as in the other blocks, and the tail is LeakyReLU, Conv3.
        dimensions: 1, 2 or 3.

    Raises:
        UserError: an argument out of its range, naming it.
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
        """Block e1: one convolution at half resolution, two at full resolution."""
        if stride == 1:
            return _double_conv(ops, inputs, outputs, stride=1)
        return ops.conv_norm_act(inputs, outputs, stride=2)

    def encoder(self, ops: Operators, inputs: int, outputs: int) -> nn.Module:
        """Blocks e2 and deeper: two convolutions, the first halves the size."""
        return _double_conv(ops, inputs, outputs, stride=2)

    def decoder(self, ops: Operators, inputs: int, outputs: int) -> nn.Module:
        """Upsampling, concatenation, Conv1 back to the deeper level's channels, two convolutions."""
        mix = ops.conv1(2 * outputs, inputs, bias=True)
        body = nn.Sequential(mix, *_double_conv(ops, inputs, outputs, stride=1))
        return SkipDecoder(ops.up2(inputs, outputs), body)


def _double_conv(ops: Operators, inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    """Conv3, norm, LeakyReLU, then a bare Conv3: neither norm nor activation follows it."""
    first = ops.conv_norm_act(inputs, outputs, stride=stride)
    return nn.Sequential(*first, ops.conv3(outputs, outputs, bias=True))

"""What PyTorch would compute wrongly without a word is refused."""

import pytest
import torch
from torch import nn

from lampseg.errors import UserError
from lampseg.networks import UNet
from lampseg.partition.costed import record_for


def net() -> nn.Module:
    return UNet(out_channels=3, filters=4, depth=1, stem_stride=1, norm="instance").train()


def test_bfloat16_on_two_planes_of_a_cpu() -> None:
    """With 16 channels and more, torch 2.13 gave gradients of 1e31 (whatever the memory held) in 9 of 10 processes."""
    with pytest.raises(UserError, match=r"wrong gradients of a convolution over two planes, as `encoders\S*` has them"):
        record_for(net(), shape=(1, 1, 4, 8, 8), precision="bfloat16", device="cpu")


@pytest.mark.parametrize(
    ("shape", "precision", "device", "gradients"),
    [
        ((1, 1, 8, 8, 8), "bfloat16", "cpu", True),
        ((1, 1, 8, 4, 4), "bfloat16", "cpu", True),
        ((1, 1, 4, 8, 8), "float32", "cpu", True),
        ((1, 1, 4, 8, 8), "bfloat16", "cuda", True),
        ((1, 1, 4, 8, 8), "bfloat16", "cpu", False),
    ],
)
def test_all_else_is_not(shape: tuple[int, ...], precision: str, device: str, gradients: bool) -> None:
    assert record_for(net(), shape=shape, precision=precision, device=device, gradients=gradients).operations


def test_a_convolution_of_one_voxel_is_right() -> None:
    network = nn.Conv3d(16, 16, 1).train()
    assert record_for(network, shape=(1, 16, 2, 8, 8), precision="bfloat16", device="cpu").operations
    assert torch.isfinite(network.weight).all()

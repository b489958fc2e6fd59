"""The SE-U-Net: squeeze-and-excitation residual blocks in the U-Net's geometry; counts as documented."""

from pathlib import Path

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from lampseg.errors import UserError
from lampseg.networks import SEUNet
from lampseg.networks.blocks import operators
from lampseg.networks.seunet import SEResidualBlock, SqueezeExcitation

DOCS = Path(__file__).parents[2] / "docs/reference/networks.md"


@pytest.mark.parametrize(("filters", "parameters"), [(32, 22_993_910), (64, 91_943_394), (128, 244_583_834)])
def test_parameter_counts_are_those_documented(filters, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in SEUNet(filters=filters).parameters()) == parameters
    assert f"{parameters:,}" in DOCS.read_text(encoding="utf-8")


def test_gate_scales_each_channel_by_its_global_mean():
    torch.manual_seed(0)
    se = SqueezeExcitation(32).double()
    x = torch.randn(2, 32, 3, 4, 5, dtype=torch.float64)
    w1, b1, w2, b2 = se.parameters()
    assert w1.shape == (2, 32)  # reduction 16
    means = x.mean((2, 3, 4))
    gate = torch.sigmoid(torch.relu(means @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(se(x), x * gate[:, :, None, None, None])


@pytest.mark.parametrize(("inputs", "stride"), [(16, 1), (8, 1), (16, 2)])
def test_block_adds_the_recalibrated_branch_to_the_shortcut(inputs, stride):
    torch.manual_seed(0)
    block = SEResidualBlock(operators(3, "instance"), inputs, 16, stride=stride).double()
    x = torch.randn(2, inputs, 4, 6, 8, dtype=torch.float64)
    conv1, norm1, _, conv2, norm2 = block.body
    branch = F.leaky_relu(norm1(F.conv3d(x, conv1.weight, stride=stride, padding=1)), 0.01)
    branch = block.excitation(norm2(F.conv3d(branch, conv2.weight, padding=1)))
    if inputs == 16 and stride == 1:
        assert isinstance(block.shortcut, nn.Identity)
        shortcut = x
    else:
        conv, norm = block.shortcut
        shortcut = norm(F.conv3d(x, conv.weight, stride=stride))
    torch.testing.assert_close(block(x), F.leaky_relu(branch + shortcut, 0.01))


def test_five_encoder_and_four_decoder_blocks_at_half_resolution():
    with torch.device("meta"):
        net = SEUNet(filters=128)
    shapes = []
    for block in [*net.encoders, *net.decoders]:
        block.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:3])))
    net.eval()(torch.empty(1, 1, 32, 32, 32, device="meta"))
    down = [(128, 16), (256, 8), (512, 4), (1024, 2), (1024, 1)]
    assert shapes == down + down[-2::-1]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_every_option_trains_in_every_dimensionality(dimensions, norm, stem_stride):
    net = SEUNet(2, 3, 4, norm=norm, depth=2, stem_stride=stem_stride, dimensions=dimensions)
    assert net.stride == (4 * stem_stride,) * dimensions
    size = (24, 16, 8)[:dimensions]
    y = net(torch.randn(2, 2, *size))
    assert y.shape == (2, 3, *size)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_runs_on_fake_tensors_without_memory():
    with FakeTensorMode():
        y = SEUNet(filters=64)(torch.empty(1, 1, 352, 256, 288))
        assert y.shape == (1, 10, 352, 256, 288)
        y.sum().backward()


def test_size_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"pad it to \(32, 64, 32\)"):
        SEUNet(filters=2)(torch.zeros(1, 1, 32, 33, 31))

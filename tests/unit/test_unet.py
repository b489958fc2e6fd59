"""The U-Net is the released one: parameter counts, levels, order of operations; and its options and errors."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from lampseg.errors import UserError
from lampseg.networks import UNet


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("filters", "parameters"), [(32, 22_906_650), (64, 91_604_522), (128, 214_284_906)])
def test_parameter_counts_are_those_of_the_released_network(filters, parameters):
    with torch.device("meta"):
        assert count(UNet(in_channels=1, out_channels=10, filters=filters)) == parameters


def test_forward_is_the_released_sequence_of_operations():
    torch.manual_seed(0)
    net = UNet(2, 5, 4, depth=1, norm="group").double()
    x = torch.randn(2, 2, 8, 4, 12, dtype=torch.float64)
    weights = list(net.parameters())

    def take(n):
        taken, weights[:] = weights[:n], weights[n:]
        return taken

    def conv_norm_act(x, stride):
        w, g, b = take(3)
        groups = 4 if g.numel() == 4 else 8
        return F.leaky_relu(F.group_norm(F.conv3d(x, w, stride=stride, padding=1), groups, g, b), 0.01)

    def bare(x, padding=1):
        return F.conv3d(x, *take(2), padding=padding)

    e1 = conv_norm_act(x, 2)
    e2 = bare(conv_norm_act(e1, 2))
    up = F.conv_transpose3d(e2, *take(2), stride=2)
    mixed = bare(torch.cat([up, e1], 1), padding=0)
    assert mixed.shape[1] == 8  # Conv1 goes back to the deeper level's channels
    d1 = bare(conv_norm_act(mixed, 1))
    tail = F.leaky_relu(F.conv_transpose3d(d1, *take(2), stride=2), 0.01)
    assert tail.shape[1] == 2
    torch.testing.assert_close(net(x), bare(tail))
    assert not weights


def test_bias_only_where_no_norm_follows():
    with torch.device("meta"):
        net = UNet(filters=8)
    for block in [m for m in net.modules() if isinstance(m, nn.Sequential)]:
        for first, second in zip(block, [*block][1:]):
            if isinstance(first, nn.Conv3d):
                assert (first.bias is None) == isinstance(second, nn.BatchNorm3d)
    assert all(m.bias is not None for m in net.modules() if isinstance(m, nn.ConvTranspose3d))


def test_channels_stop_at_1024():
    with torch.device("meta"):
        net = UNet(filters=128)
    shapes = []
    for encoder in net.encoders:
        encoder.register_forward_hook(lambda m, i, o: shapes.append(tuple(o.shape[1:3])))
    net.eval()(torch.empty(1, 1, 32, 32, 32, device="meta"))
    assert shapes == [(128, 16), (256, 8), (512, 4), (1024, 2), (1024, 1)]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize("norm", ["batch", "instance", "group"])
@pytest.mark.parametrize("stem_stride", [1, 2])
def test_every_option_trains_in_every_dimensionality(dimensions, norm, stem_stride):
    net = UNet(2, 3, 4, norm=norm, depth=2, stem_stride=stem_stride, dimensions=dimensions)
    assert net.stride == (4 * stem_stride,) * dimensions
    size = (24, 16, 8)[:dimensions]
    y = net(torch.randn(2, 2, *size))
    assert y.shape == (2, 3, *size)
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_full_resolution_has_five_encoder_and_four_decoder_blocks():
    with torch.device("meta"):
        net = UNet(filters=8, stem_stride=1)
    sizes = []
    for block in [*net.encoders, *net.decoders]:
        block.register_forward_hook(lambda m, i, o: sizes.append(o.shape[2]))
    net.eval()(torch.empty(1, 1, 32, 32, 32, device="meta"))
    assert sizes == [32, 16, 8, 4, 2, 4, 8, 16, 32]
    assert not any(isinstance(m, nn.ConvTranspose3d) for m in net.tail.modules())
    assert net.stride == (16, 16, 16)


def test_runs_on_fake_tensors_without_memory():
    with FakeTensorMode():
        y = UNet(filters=64)(torch.empty(1, 1, 512, 512, 704))
        assert y.shape == (1, 10, 512, 512, 704)
        y.sum().backward()


def test_size_that_does_not_fit_is_refused_with_the_next_that_does():
    net = UNet(filters=2, depth=2)
    with pytest.raises(UserError, match=r"\(1, 1, 16, 20, 9\).*stride \(8, 8, 8\).*pad it to \(16, 24, 16\)"):
        net(torch.zeros(1, 1, 16, 20, 9))
    with pytest.raises(UserError, match=r"pad it to \(16, 16, 24\)"):
        net(torch.zeros(1, 1, 16, 16, 20))


@pytest.mark.parametrize("shape", [(1, 2, 32, 32, 32), (1, 32, 32, 32), (1, 1, 32, 32)])
def test_wrong_number_of_channels_or_axes_is_refused(shape):
    with pytest.raises(UserError, match=r"expects \(batch, 1, size, size, size\)"):
        UNet(filters=2)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dimensions", 4),
        ("norm", "layer"),
        ("depth", 0),
        ("stem_stride", 3),
        ("filters", 1),
        ("in_channels", 0),
        ("out_channels", 2.0),
    ],
)
def test_bad_arguments_are_named(field, value):
    with pytest.raises(UserError, match=rf"^{field}: {value!r}"):
        UNet(**{field: value})

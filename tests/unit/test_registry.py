"""The registry builds networks by name, fills in what the data say, finds strides, and explains every refusal."""

import time

import pytest
import torch
from monai.networks.nets import BasicUNet, DynUNet
from torch import nn

from lampseg.config import NetworkConfig
from lampseg.errors import UserError
from lampseg.networks import SEUNet, UNet, build_network, network_sizes, network_stride, on_meta

MONAI = "monai.networks.nets."
DYNUNET = {"kernel_size": [3, 3, 3], "strides": [1, 2, [2, 2, 1]], "upsample_kernel_size": [2, [2, 2, 1]]}


class OwnNet(nn.Module):
    """Names as in nnU-Net: other channel names, a class as an argument, no default for spatial_dims."""

    def __init__(self, input_channels, num_classes, conv_op=nn.Conv2d, *, spatial_dims):
        super().__init__()
        self.spatial_dims = spatial_dims
        self.conv = conv_op(input_channels, num_classes, 2, 2)

    def forward(self, x):
        return nn.functional.interpolate(self.conv(x), scale_factor=2)


class TooSmall(nn.Module):
    def forward(self, x):
        return x[:, :, 1:]


class FixedChannels(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.width = width


def build(name, **fields):
    return build_network(NetworkConfig(name=name, **fields), in_channels=2, out_channels=3)


def test_own_networks_take_their_options():
    net = build("unet", filters=4, norm="group", depth=2, stem_stride=1)
    assert isinstance(net, UNet)
    assert net.stride == (4, 4, 4)
    assert net(torch.zeros(1, 2, 4, 4, 4)).shape == (1, 3, 4, 4, 4)
    assert any(isinstance(m, nn.GroupNorm) for m in net.modules())
    assert isinstance(build("seunet", filters=2, kwargs={"depth": 1}), SEUNet)


def test_unset_options_keep_the_defaults_of_the_network():
    with torch.device("meta"):
        net = build_network(NetworkConfig(), in_channels=1, out_channels=10)
    assert sum(p.numel() for p in net.parameters()) == 22_906_650


def test_monai_networks_are_built_and_filled_in():
    dyn = build(MONAI + "DynUNet", kwargs={**DYNUNET, "filters": [4, 8, 16]})
    assert isinstance(dyn, DynUNet)
    assert dyn.eval()(torch.zeros(1, 2, 16, 16, 8)).shape == (1, 3, 16, 16, 8)
    basic = build(MONAI + "BasicUNet", kwargs={"features": [4, 4, 4, 4, 4, 4]})
    assert isinstance(basic, BasicUNet)
    assert basic.eval()(torch.zeros(1, 2, 32, 32, 32)).shape == (1, 3, 32, 32, 32)


def test_names_of_other_libraries_and_classes_as_strings():
    net = build(f"{__name__}.OwnNet", kwargs={"conv_op": "torch.nn.Conv3d"})
    assert net.spatial_dims == 3
    assert net.conv.weight.shape == (3, 2, 2, 2, 2)
    assert build(f"{__name__}.OwnNet", kwargs={"spatial_dims": 2}).spatial_dims == 2
    assert build(f"{__name__}.FixedChannels", kwargs={"width": 6}).width == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "unett"}, "`unett` is unknown; did you mean `unet`"),
        ({"name": "SEUNet"}, "did you mean `seunet`"),
        ({"name": "xyz"}, "neither of `unet` and `seunet`"),
        ({"name": "monai.networks.netz.UNet"}, "cannot be imported .*netz.*PYTHONPATH"),
        ({"name": ".UNet"}, "unknown|cannot be imported"),
        ({"name": MONAI + "DynUNett"}, r"no class `DynUNett`; did you mean `monai.networks.nets.Dyn"),
        ({"name": "math.sqrt"}, "is a builtin_function_or_method, not a torch.nn.Module class"),
        ({"name": "pathlib.Path"}, "not a torch.nn.Module class"),
        ({"name": MONAI + "DynUNet"}, "cannot be built: .*missing 3 required"),
        ({"name": MONAI + "DynUNet", "kwargs": {**DYNUNET, "strides": [1]}}, r"cannot be built: "),
        ({"name": MONAI + "BasicUNet", "filters": 8}, "`filters` is an option of `unet` and `seunet` only.*kwargs"),
        ({"name": MONAI + "BasicUNet", "kwargs": {"out_channels": 9}}, "kwargs.out_channels: .* given 9.* 3 classes"),
        ({"name": MONAI + "BasicUNet", "kwargs": {"in_channels": 1}}, "kwargs.in_channels: .*2 channels"),
        ({"name": "unet", "kwargs": {"filter": 8}}, "cannot be built: .*unexpected keyword argument 'filter'"),
        ({"name": "unet", "filters": 8, "kwargs": {"filters": 8}}, "`filters` is given twice"),
        ({"name": f"{__name__}.OwnNet", "kwargs": {"conv_op": "torch.nn.Conv9d"}}, "`torch.nn.Conv9d` is not"),
        ({"name": f"{__name__}.OwnNet", "kwargs": {"conv_op": "torch.nn.no.Conv"}}, "not a class in torch.nn; check"),
        ({"name": f"{__name__}.OwnNet", "kwargs": {"conv_op": f"{__name__}.No"}}, "not a class in tests; check"),
    ],
)
def test_refusals_name_the_fault_and_the_remedy(fields, message):
    with pytest.raises(UserError, match=message):
        build(**fields)


def test_channels_that_agree_with_the_data_may_be_given():
    kwargs = {"in_channels": 2, "out_channels": 3, "features": [2] * 6}
    assert isinstance(build(MONAI + "BasicUNet", kwargs=kwargs), BasicUNet)


def test_stride_is_found_per_axis_and_leaves_the_network_alone():
    net = build(MONAI + "DynUNet", kwargs={**DYNUNET, "filters": [4, 8, 16], "norm_name": "batch"})
    net.input_block.eval()
    before = {name: t.clone() for name, t in net.state_dict().items()}
    assert network_stride(net, in_channels=2) == (4, 4, 2)
    started = time.process_time()
    network_stride(net, in_channels=2)
    assert time.process_time() - started < 1.0
    assert net.training
    assert not net.input_block.training
    assert all(torch.equal(before[name], t) for name, t in net.state_dict().items())


def test_stride_of_deep_supervision_meta_and_own_networks():
    deep = {**DYNUNET, "strides": [1, 2, 2, 2], "kernel_size": [3] * 4, "upsample_kernel_size": [2] * 3}
    deep.update(filters=[2, 2, 2, 2], deep_supervision=True, deep_supr_num=2)
    assert network_stride(build(MONAI + "DynUNet", kwargs=deep), in_channels=2) == (8, 8, 8)
    with torch.device("meta"):
        assert network_stride(build("unet"), in_channels=2) == (32, 32, 32)
        assert network_stride(
            build(f"{__name__}.OwnNet", kwargs={"conv_op": "torch.nn.Conv3d"} | {"spatial_dims": 3}), in_channels=2
        ) == (2, 2, 2)
    # BasicUNet pads inside wherever a level is odd.
    assert network_stride(build(MONAI + "BasicUNet", kwargs={"features": [2] * 6}), in_channels=2) == (1, 1, 1)


def test_network_without_any_stride_is_refused_with_what_it_said():
    with pytest.raises(UserError, match=r"TooSmall.*came out with shape \(1, 1, 191, 192, 192\)"):
        network_stride(TooSmall(), in_channels=1)
    with pytest.raises(UserError, match="it said: RuntimeError"):
        network_stride(build(f"{__name__}.OwnNet", kwargs={"spatial_dims": 2}), in_channels=2)


class TwoBlocks(nn.Module):
    """Takes a class of its own package, as nnU-Net's ResidualEncoderUNet does."""

    def __init__(self, block):
        super().__init__()
        self.block = block(width=3)


class OneSize(nn.Module):
    """As UNETR: something in it has the size of the image."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(8, 4, 6))

    def forward(self, x):
        return x + self.position


class ReadsANumber(nn.Module):
    """As SwinUNETR: its constructor reads the values of a tensor."""

    def __init__(self):
        super().__init__()
        self.rates = [x.item() for x in torch.linspace(0, 0.5, 3)]
        self.conv = nn.Conv3d(1, 1, 1)


def test_a_class_of_the_networks_own_package():
    net = build(f"{__name__}.TwoBlocks", kwargs={"block": f"{__name__}.FixedChannels"})
    assert isinstance(net.block, FixedChannels)
    assert net.block.width == 3


def test_a_network_of_one_size():
    patches = [(4, 4, 4), (8, 4, 6)]
    assert network_sizes(OneSize(), in_channels=1, patches=patches) == ((8, 4, 6), (8, 4, 6))
    with pytest.raises(UserError, match=r"OneSize keeps the size of no volume.*If it takes one size only, give that"):
        network_sizes(OneSize(), in_channels=1, patches=patches[:1])
    unet = UNet(in_channels=1, out_channels=2, filters=2, depth=1)
    assert network_sizes(unet, in_channels=1, patches=patches) == ((4, 4, 4), None)


def test_on_meta_where_the_constructor_allows():
    def parameters(name):
        return list(on_meta(lambda: build(f"{__name__}.{name}")).parameters())

    assert all(parameter.is_meta for parameter in parameters("OneSize"))
    assert not any(parameter.is_meta for parameter in parameters("ReadsANumber"))
    with pytest.raises(UserError, match="cannot be built"):
        on_meta(lambda: build(f"{__name__}.TwoBlocks"))

"""Small versions of common 3D segmentation networks, as a configuration names them, and inputs that they can take."""

from typing import Any

import torch
from monai.networks.nets import VNet
from monai.networks.nets.vnet import DownTransition, InputTransition, OutputTransition, UpTransition
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from lampseg.config import NetworkConfig
from lampseg.networks import build_network

CLASSES = 3
MONAI = "monai.networks.nets."
NNUNET = "dynamic_network_architectures.architectures.unet."
DYN_UNET = {"kernel_size": [3, [3, 3, 1], 3], "strides": [1, 2, [2, 2, 1]], "upsample_kernel_size": [2, [2, 2, 1]]}
NNUNET_LEVELS = {
    "n_stages": 3,
    "features_per_stage": [4, 6, 8],
    "conv_op": "torch.nn.Conv3d",
    "kernel_sizes": [[1, 3, 3], 3, 3],
    "strides": [1, [1, 2, 2], 2],
    "n_conv_per_stage_decoder": 1,
    "conv_bias": True,
    "norm_op": "torch.nn.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1.0e-5, "affine": True},
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
PLAIN = NNUNET_LEVELS | {"n_conv_per_stage": [1, 2, 1]}
RESIDUAL = NNUNET_LEVELS | {"n_blocks_per_stage": [1, 2, 1]}
UNETR = {"img_size": [32, 16, 32], "feature_size": 2, "hidden_size": 12, "mlp_dim": 16, "num_heads": 3}
SWIN = {"feature_size": 12, "depths": [2, 1, 1, 1], "num_heads": [3, 3, 3, 3], "window_size": [4, 3, 4]} | {
    "norm_name": ["group", {"num_groups": 4}]  # its deepest level is a single voxel here
}


class NarrowVNet(VNet):
    """VNet has 16 channels at full resolution, and so 45 million parameters, whatever it is asked: here it has 2."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        nn.Module.__init__(self)
        act = ("elu", {"inplace": True})
        self.in_tr = InputTransition(3, in_channels, 2, act)
        self.down_tr32 = DownTransition(3, 2, 1, act)
        self.down_tr64 = DownTransition(3, 4, 2, act)
        self.down_tr128 = DownTransition(3, 8, 3, act, dropout_prob=0.5)
        self.down_tr256 = DownTransition(3, 16, 2, act, dropout_prob=0.5)
        self.up_tr256 = UpTransition(3, 32, 32, 2, act, dropout_prob=(0.5, 0.5))
        self.up_tr128 = UpTransition(3, 32, 16, 2, act, dropout_prob=(0.5, 0.5))
        self.up_tr64 = UpTransition(3, 16, 8, 1, act)
        self.up_tr32 = UpTransition(3, 8, 4, 1, act)
        self.out_tr = OutputTransition(3, 4, out_channels, act)


NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "unet": (MONAI + "UNet", {"channels": [4, 6, 8], "strides": [2, 2], "num_res_units": 1}),
    "unet-batch": (MONAI + "UNet", {"channels": [4, 6, 8], "strides": [2, 2], "norm": "batch", "act": "relu"}),
    "basicunet": (MONAI + "BasicUNet", {"features": [2, 4, 4, 6, 6, 4]}),
    "dynunet": (MONAI + "DynUNet", DYN_UNET | {"filters": [4, 6, 8], "res_block": True}),
    "dynunet-deep": (
        MONAI + "DynUNet",
        DYN_UNET | {"filters": [4, 6, 8], "deep_supervision": True, "deep_supr_num": 1},
    ),
    "segresnet": (MONAI + "SegResNet", {"init_filters": 8, "blocks_down": [1, 1, 1], "blocks_up": [1, 1]}),
    "attentionunet": (MONAI + "AttentionUnet", {"channels": [4, 6, 8], "strides": [2, 2]}),
    "vnet": (f"{__name__}.NarrowVNet", {}),
    "unetr": (MONAI + "UNETR", UNETR),
    "swinunetr": (MONAI + "SwinUNETR", SWIN),
    "swinunetr2d": (MONAI + "SwinUNETR", SWIN | {"spatial_dims": 2, "window_size": [4, 3], "use_v2": True}),
    "plainconvunet": (NNUNET + "PlainConvUNet", PLAIN),
    "plainconvunet-deep": (NNUNET + "PlainConvUNet", PLAIN | {"deep_supervision": True}),
    "residualencoderunet": (NNUNET + "ResidualEncoderUNet", RESIDUAL),
    "residualencoderunet-deep": (NNUNET + "ResidualEncoderUNet", RESIDUAL | {"deep_supervision": True}),
}
RANDOM: dict[str, dict[str, Any]] = {
    "vnet": {},  # always
    "unetr": {"dropout_rate": 0.3},
    "swinunetr2d": {"drop_rate": 0.2, "attn_drop_rate": 0.2, "dropout_path_rate": 0.3},
    "plainconvunet": {"dropout_op": "torch.nn.Dropout3d", "dropout_op_kwargs": {"p": 0.3}},
}
"""More arguments, with which a network draws random numbers in training."""
SHAPES: dict[str, tuple[tuple[int, ...], ...]] = {
    "basicunet": ((1, 1, 16, 32, 17), (2, 1, 19, 16, 33)),
    "vnet": ((1, 1, 16, 16, 32), (2, 1, 16, 16, 16)),
    "unetr": ((1, 1, 32, 16, 32),) * 2,  # it takes one size only
    "swinunetr": ((1, 1, 32, 32, 32),) * 2,  # more voxels would take long; its windows vary in the plane
    "swinunetr2d": ((1, 1, 64, 32), (2, 1, 32, 96)),
}
USUAL = ((1, 1, 8, 16, 12), (2, 1, 12, 8, 20), (1, 1, 8, 16, 12))


def build(name: str, **more: Any) -> nn.Module:
    """The network in float64, with the same weights each time."""
    path, kwargs = NETWORKS[name]
    torch.manual_seed(7)
    config = NetworkConfig(name=path, kwargs=kwargs | more)
    return build_network(config, in_channels=1, out_channels=CLASSES).double()


def without_dropout(network: nn.Module) -> nn.Module:
    """Plain PyTorch draws other numbers than a pipeline; some networks have dropout that no argument switches off."""
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
    return network


def inputs(name: str) -> list[Tensor]:
    """Micro-batches of different shapes."""
    generator = torch.Generator().manual_seed(3)
    shapes = SHAPES.get(name.split("-")[0], USUAL)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]

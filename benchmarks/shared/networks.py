"""The networks that the benchmarks plan and run: as large as they are used, and small ones of the same kinds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from lampseg.config import NetworkConfig
from lampseg.networks import build_network, on_meta

MONAI = "monai.networks.nets."
NNUNET = "dynamic_network_architectures.architectures.unet."
CLASSES = 3


@dataclass(frozen=True)
class Named:
    """A network as a configuration names it."""

    title: str
    name: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    size_argument: str | None = None
    """The argument that takes the input's size, of a network that is built for one."""

    def config(self, size: tuple[int, ...]) -> NetworkConfig:
        sized = {self.size_argument: list(size)} if self.size_argument else {}
        if self.name in ("unet", "seunet"):
            return NetworkConfig.model_validate({"name": self.name, **self.kwargs, **sized})
        return NetworkConfig(name=self.name, kwargs={**self.kwargs, **sized})

    def build(self, size: tuple[int, ...], *, precision: str = "float32", meta: bool = False) -> nn.Module:
        """The network in train mode, with the same weights each time; on meta it has none."""

        def make() -> nn.Module:
            return build_network(self.config(size), in_channels=1, out_channels=CLASSES)

        torch.manual_seed(7)
        network = on_meta(make) if meta else make()
        return (network.double() if precision == "float64" else network).train()


def _nnunet(features: list[int], **more: Any) -> dict[str, Any]:
    levels = len(features)
    return {
        "n_stages": levels,
        "features_per_stage": features,
        "conv_op": "torch.nn.Conv3d",
        "kernel_sizes": 3,
        "strides": [1] + [2] * (levels - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1.0e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        **more,
    }


def _dynunet(filters: list[int], **more: Any) -> dict[str, Any]:
    levels = len(filters)
    return {
        "kernel_size": [3] * levels,
        "strides": [1] + [2] * (levels - 1),
        "upsample_kernel_size": [2] * (levels - 1),
        "filters": filters,
        **more,
    }


_SIX = [32, 64, 128, 256, 320, 320]
LARGE: dict[str, Named] = {
    "monai-unet": Named(
        "MONAI UNet",
        MONAI + "UNet",
        {"channels": [32, 64, 128, 256, 512], "strides": [2, 2, 2, 2], "num_res_units": 2},
    ),
    "basicunet": Named("MONAI BasicUNet", MONAI + "BasicUNet"),
    "dynunet": Named("MONAI DynUNet", MONAI + "DynUNet", _dynunet(_SIX)),
    "dynunet-deep": Named(
        "MONAI DynUNet, deep supervision",
        MONAI + "DynUNet",
        _dynunet(_SIX, deep_supervision=True, deep_supr_num=3),
    ),
    "segresnet": Named("MONAI SegResNet", MONAI + "SegResNet", {"init_filters": 32}),
    "attentionunet": Named(
        "MONAI AttentionUnet",
        MONAI + "AttentionUnet",
        {"channels": [32, 64, 128, 256, 512], "strides": [2, 2, 2, 2]},
    ),
    "vnet": Named("MONAI VNet", MONAI + "VNet"),
    "unetr": Named("MONAI UNETR", MONAI + "UNETR", size_argument="img_size"),
    "swinunetr": Named("MONAI SwinUNETR", MONAI + "SwinUNETR", {"feature_size": 48}),
    "plainconvunet": Named(
        "nnU-Net PlainConvUNet",
        NNUNET + "PlainConvUNet",
        _nnunet(_SIX, n_conv_per_stage=2, n_conv_per_stage_decoder=2),
    ),
    "residualencoderunet": Named(
        "nnU-Net ResidualEncoderUNet",
        NNUNET + "ResidualEncoderUNet",
        _nnunet(_SIX, n_blocks_per_stage=[1, 3, 4, 6, 6, 6], n_conv_per_stage_decoder=1),
    ),
    "unet-32": Named("U-Net-32", "unet", {"filters": 32}),
    "seunet-32": Named("SE-U-Net-32", "seunet", {"filters": 32}),
    "seunet-128": Named("SE-U-Net-128", "seunet", {"filters": 128}),
}

_FOUR = [8, 16, 24, 32]
SMALL: dict[str, Named] = {
    "monai-unet": Named("MONAI UNet", MONAI + "UNet", {"channels": _FOUR, "strides": [2, 2, 2], "num_res_units": 2}),
    "basicunet": Named("MONAI BasicUNet", MONAI + "BasicUNet", {"features": [8, 8, 16, 24, 32, 8]}),
    "dynunet": Named("MONAI DynUNet", MONAI + "DynUNet", _dynunet(_FOUR)),
    "dynunet-deep": Named(
        "MONAI DynUNet, deep supervision",
        MONAI + "DynUNet",
        _dynunet(_FOUR, deep_supervision=True, deep_supr_num=1),
    ),
    "segresnet": Named(
        "MONAI SegResNet", MONAI + "SegResNet", {"init_filters": 8, "blocks_down": [1, 2, 2], "blocks_up": [1, 1]}
    ),
    "attentionunet": Named("MONAI AttentionUnet", MONAI + "AttentionUnet", {"channels": _FOUR, "strides": [2, 2, 2]}),
    "vnet": Named("MONAI VNet", MONAI + "VNet", {"dropout_prob_down": 0.0, "dropout_prob_up": [0.0, 0.0]}),
    "unetr": Named(
        "MONAI UNETR",
        MONAI + "UNETR",
        {"feature_size": 8, "hidden_size": 48, "mlp_dim": 96, "num_heads": 4},
        size_argument="img_size",
    ),
    "swinunetr": Named(
        "MONAI SwinUNETR", MONAI + "SwinUNETR", {"feature_size": 12, "depths": [2, 1, 1, 1], "num_heads": [3, 3, 3, 3]}
    ),
    "plainconvunet": Named(
        "nnU-Net PlainConvUNet",
        NNUNET + "PlainConvUNet",
        _nnunet(_FOUR, n_conv_per_stage=2, n_conv_per_stage_decoder=2),
    ),
    "residualencoderunet": Named(
        "nnU-Net ResidualEncoderUNet",
        NNUNET + "ResidualEncoderUNet",
        _nnunet(_FOUR, n_blocks_per_stage=[1, 2, 2, 2], n_conv_per_stage_decoder=1),
    ),
    "unet": Named("U-Net-8", "unet", {"filters": 8, "depth": 3, "stem_stride": 1, "norm": "instance"}),
    "seunet": Named("SE-U-Net-8", "seunet", {"filters": 8, "depth": 3, "stem_stride": 1}),
}

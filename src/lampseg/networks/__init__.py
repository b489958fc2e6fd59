"""Networks: the paper's U-Net and SE-U-Net, and a registry that builds any importable one by name."""

from lampseg.networks.registry import build_network, network_sizes, network_stride, on_meta
from lampseg.networks.seunet import SEUNet
from lampseg.networks.unet import UNet

__all__ = ["SEUNet", "UNet", "build_network", "network_sizes", "network_stride", "on_meta"]

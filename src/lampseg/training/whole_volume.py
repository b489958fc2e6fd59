"""What training a whole volume at once takes: bytes on one device by network and precision, without running it."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from lampseg.config import LossConfig, NetworkConfig
from lampseg.errors import UserError
from lampseg.hardware.device import hardware_for
from lampseg.networks import build_network, network_stride, on_meta
from lampseg.networks.registry import NETWORKS
from lampseg.partition.problem import Problem
from lampseg.training.planned_loss import planned_loss

Triple = tuple[int, int, int]
DEFAULT = tuple(f"{name}-{filters}" for name in ("unet", "seunet") for filters in (32, 64, 128))
PRECISIONS = ("float32", "bfloat16")
MEMORIES = (16, 24, 40, 80)
"""GiB of common GPUs."""


@dataclass(frozen=True)
class Need:
    """Of one network in one precision."""

    network: str
    """As in --networks: unet-32."""
    precision: str
    shape: Triple
    """The volume, filled up to a multiple of the network's stride."""
    parameters: int
    peak_bytes: float | None
    """On one device, batch 1, nothing recomputed; None: not possible."""
    problem: str | None
    """Why it is not."""

    def devices(self, gibibytes: int) -> int | None:
        """How many devices of so much memory have as much together."""
        return None if self.peak_bytes is None else math.ceil(self.peak_bytes / (gibibytes * 1024**3))


def parse_networks(names: Sequence[str]) -> tuple[tuple[str, NetworkConfig], ...]:
    """`unet-32` -> U-Net with 32 filters.

    Raises:
        UserError: another name.
    """
    found = []
    for name in names:
        kind, _, filters = name.rpartition("-")
        if kind not in NETWORKS or not filters.isdecimal() or not int(filters):
            raise UserError(
                f"--networks: `{name}` is not a network and its filters, such as {', '.join(DEFAULT)}; or give none"
            )
        found.append((name, NetworkConfig(name=kind, filters=int(filters))))
    return tuple(found)


def needs(
    networks: Sequence[tuple[str, NetworkConfig]], *, shape: Triple, channels: int, classes: int
) -> Iterator[Need]:
    """The planner's estimate for each network and precision, one after the other (a second or two each).

    Args:
        shape: of the volume in voxels.
        channels: of the image.
        classes: with the background.
    """
    hardware = hardware_for(kind="cuda", name=f"{max(MEMORIES) * 1024**3}B", processes=1)
    for name, config in networks:
        network = on_meta(partial(build_network, config, in_channels=channels, out_channels=classes))
        network.train()
        stride = network_stride(network, in_channels=channels)
        x, y, z = (-(-size // step) * step for size, step in zip(shape, stride))
        loss = planned_loss(LossConfig(), classes=classes, padded=(x, y, z) != tuple(shape))
        parameters = sum(parameter.numel() for parameter in network.parameters())
        for precision in PRECISIONS:
            problem = Problem(
                network=network,
                name=name,
                size=(x, y, z),
                batch=1,
                hardware=hardware,
                channels=channels,
                precision=precision,
                recompute="none",
                loss=loss,
            )
            peak, fault = None, None
            try:
                peak = float(problem.solve().plan.peak_bytes)
            except UserError as error:
                fault = str(error)
            yield Need(name, precision, (x, y, z), parameters, peak, fault)

"""The subject of planning: a configuration, its network, data and devices; a problem for each curriculum stage."""

from dataclasses import dataclass

import torch
from torch import nn

from lampseg.config import Config
from lampseg.hardware.device import Hardware, hardware_for
from lampseg.parallel.devices import Devices
from lampseg.parallel.rehearsal import rehearse
from lampseg.partition.problem import Problem
from lampseg.training.planned_loss import planned_loss

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Subject:
    """What is planned."""

    config: Config
    network: nn.Module
    """May be on meta."""
    classes: int
    stride: Size
    """The network's total stride."""
    volume: Size
    """Per axis the size of the largest training volume, padded to the stride: what `patch: whole` is planned for."""
    devices: Devices
    hardware: Hardware
    channels: int = 1
    """Of the images."""
    padded: tuple[bool, ...] = ()
    """For each curriculum stage, whether what it trains on has padding, which the loss masks; empty: none has."""

    def problem(self, stage: int) -> Problem:
        """The planning problem of a curriculum stage (0 is the first)."""
        config, settings, parallel = self.config, self.config.curriculum[stage], self.config.parallel
        replicas = None if parallel.replicas == "auto" else parallel.replicas
        if parallel.mode == "pipeline":
            replicas = 1
        elif parallel.mode == "data":
            replicas = self.devices.count
        self.network.train()
        return Problem(
            network=self.network,
            name=config.network.name,
            size=settings.size or self.volume,
            channels=self.channels,
            batch=settings.batch,
            hardware=self.hardware,
            devices=self.devices.count,
            memory=self.devices.memory,
            precision=config.precision,
            # Whole volumes have different shapes: each is a micro-batch of its own.
            micro_batches=settings.batch if settings.whole else settings.micro_batches or parallel.micro_batches,
            replicas=replicas,
            schedule=None if parallel.schedule == "auto" else parallel.schedule,
            recompute=None if parallel.recompute == "auto" else parallel.recompute,
            optimizer=optimizer_numbers(config),
            loss=planned_loss(config.loss, classes=self.classes, padded=bool(self.padded) and self.padded[stage]),
            rehearse=rehearse,
        )


def hardware_of(config: Config, devices: Devices) -> Hardware:
    """The speeds to plan with: those that were named, else this machine's, else those of a card of that memory."""
    name = config.parallel.hardware or devices.hardware
    if name is None and devices.kind == "cuda" and not torch.cuda.is_available() and devices.memory:
        name = f"{min(devices.memory):.0f}B"
    return hardware_for(kind=devices.kind, name=name, processes=devices.count)


def optimizer_numbers(config: Config) -> float:
    """How many numbers RMSprop keeps for each parameter."""
    options = config.optimizer.kwargs
    return 1.0 + bool(options.get("momentum", 0)) + bool(options.get("centered", False))

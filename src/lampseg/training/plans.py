"""One plan for each stage of the curriculum: the configuration as planning problems, solved before anything runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from lampseg.config import Config, StageConfig
from lampseg.errors import UserError
from lampseg.hardware.device import Hardware, hardware_for
from lampseg.parallel.devices import Devices
from lampseg.parallel.rehearsal import rehearse
from lampseg.partition import Plan
from lampseg.partition.costed import record_for
from lampseg.partition.problem import Problem
from lampseg.partition.questions import remedies
from lampseg.training.planned_loss import planned_loss
from lampseg.training.smallest import enough_voxels

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


def make_plans(
    subject: Subject,
    *,
    smallest: Size | None = None,
    margin: float = 1.0,
    on_way: Callable[[], None] = lambda: None,
) -> tuple[Plan, ...]:
    """One plan per curriculum stage.

    Args:
        smallest: the padded training volume of fewest voxels: whether `patch: whole` is possible with it is tried.
        margin: memory is planned as if devices needed so many times what is predicted.
        on_way: called as the search goes on.

    Raises:
        UserError: a stage cannot be run or does not fit; the message names it, and says what would have to change.
    """
    plans = []
    for index, stage in enumerate(subject.config.curriculum):
        with _named(stage, index, size=stage.size or subject.volume):
            problem = replace(subject.problem(index), margin=margin)
            found = problem.solve(on_way=on_way)
            if not found.fits:
                raise UserError(remedies(problem, found.plan, stride=subject.stride))
            plans.append(found.plan)
        _try_smallest(subject, index, smallest)
    return tuple(plans)


def plans_given(
    subject: Subject, given: Sequence[Plan], *, source: str, smallest: Size | None = None
) -> tuple[Plan, ...]:
    """The plans that follow from the choices of given ones, perhaps edited by hand.

    Args:
        given: one for each curriculum stage; only their choices are taken.
        source: of the plans, for messages.

    Raises:
        UserError: a plan can't be executed here; the message says which and why.
    """
    config, devices = subject.config, subject.devices
    if len(given) != len(config.curriculum):
        raise UserError(
            f"{source}: holds {len(given)} plan(s), the curriculum has {len(config.curriculum)} stage(s): give one each"
        )
    plans = []
    for index, (stage, plan) in enumerate(zip(config.curriculum, given)):
        choices, problem = plan.choices, subject.problem(index)
        where = f"{source}: plan {index + 1} (curriculum.{index}, patch {stage.patch})"
        if choices.replicas * choices.devices != devices.count:
            raise UserError(
                f"{where}: is for {choices.replicas} x {choices.devices} devices, there are {devices.count}: plan with "
                f"--devices {devices.count}, or edit choices.replicas and choices.devices"
            )
        if choices.micro_batches > stage.batch or (stage.whole and choices.micro_batches != stage.batch):
            exactly = "exactly" if stage.whole else "at most"
            raise UserError(
                f"{where}: choices.micro_batches is {choices.micro_batches}, the batch of {stage.batch} can be cut "
                f"into {exactly} {stage.batch}"
            )
        try:
            made = problem.given(choices, digest=plan.digest)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        plans.append(made)
        _try_smallest(subject, index, smallest)
    return tuple(plans)


def _try_smallest(subject: Subject, index: int, smallest: Size | None) -> None:
    """Whether the network runs on the smallest whole volume, too."""
    stage = subject.config.curriculum[index]
    if stage.whole and smallest is not None and smallest != subject.volume:
        with _named(stage, index, size=smallest):
            record_for(
                subject.network,
                shape=(1, 1, *smallest),
                precision=subject.config.precision,
                device=subject.hardware.kind,
            )


@contextmanager
def _named(stage: StageConfig, index: int, *, size: tuple[int, int, int]) -> Iterator[None]:
    """Puts the curriculum stage before the message of a fault."""
    if stage.whole:
        remedy = "leave such small cases out, or use a network with fewer levels (network.depth)"
    else:
        remedy = f"use a larger patch, for instance {[2 * edge for edge in size]}, or a smaller network.depth"
    try:
        with enough_voxels("its input", size, remedy=remedy):
            yield
    except UserError as error:
        raise UserError(f"curriculum.{index} (patch {stage.patch}): {error}") from error


def optimizer_numbers(config: Config) -> float:
    """How many numbers RMSprop keeps for each parameter."""
    options = config.optimizer.kwargs
    return 1.0 + bool(options.get("momentum", 0)) + bool(options.get("centered", False))

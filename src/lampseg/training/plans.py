"""One plan for each stage of the curriculum: the configuration as planning problems, solved before anything runs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from lampseg.config import Config, StageConfig
from lampseg.errors import UserError
from lampseg.parallel.devices import Devices
from lampseg.parallel.rehearsal import rehearse
from lampseg.partition import Plan
from lampseg.partition.costed import cost_network
from lampseg.partition.hardware import Hardware
from lampseg.partition.problem import Problem
from lampseg.partition.questions import remedies
from lampseg.training.loss_cost import loss_cost
from lampseg.training.smallest import enough_voxels

Size = tuple[int, int, int]


def problem_of(
    config: Config, network: nn.Module, *, stage: int, devices: Devices, hardware: Hardware, size: Size, classes: int
) -> Problem:
    """The planning problem of a curriculum stage.

    Args:
        network: in train mode; may be on meta.
        stage: 0 is the first.
        size: of the input in voxels: the patch, or the largest whole volume.
    """
    settings, parallel = config.curriculum[stage], config.parallel
    replicas = None if parallel.replicas == "auto" else parallel.replicas
    if parallel.mode == "pipeline":
        replicas = 1
    elif parallel.mode == "data":
        replicas = devices.count
    return Problem(
        network=network,
        name=config.network.name,
        size=size,
        batch=settings.batch,
        hardware=hardware,
        devices=devices.count,
        memory=devices.memory,
        precision=config.precision,
        # Whole volumes have different shapes: each is a micro-batch of its own.
        micro_batches=settings.batch if settings.whole else settings.micro_batches or parallel.micro_batches,
        replicas=replicas,
        schedule=None if parallel.schedule == "auto" else parallel.schedule,
        recompute=None if parallel.recompute == "auto" else parallel.recompute,
        optimizer=optimizer_numbers(config),
        loss=loss_cost(config.loss, classes=classes, hardware=hardware, precision=config.precision),
        rehearse=rehearse,
    )


def make_plans(
    config: Config,
    network: nn.Module,
    *,
    devices: Devices,
    hardware: Hardware,
    classes: int,
    stride: Size,
    largest: Size,
    smallest: Size | None = None,
    margin: float = 1.0,
    on_way: Callable[[], None] = lambda: None,
) -> tuple[Plan, ...]:
    """One plan per curriculum stage.

    Args:
        network: may be on meta.
        stride: the network's total stride.
        largest: the largest padded training volume, in voxels: what `patch: whole` is planned for.
        smallest: the padded training volume of fewest voxels: whether `patch: whole` is possible with it is tried.
        margin: memory is planned as if devices needed so many times what is predicted.
        on_way: called as the search goes on.

    Raises:
        UserError: a stage cannot be run or does not fit; the message names it, and says what would have to change.
    """
    network.train()
    plans = []
    for index, stage in enumerate(config.curriculum):
        with _named(stage, index, size=stage.size or largest):
            problem = problem_of(
                config,
                network,
                stage=index,
                devices=devices,
                hardware=hardware,
                size=stage.size or largest,
                classes=classes,
            )
            problem = replace(problem, margin=margin)
            found = problem.solve(on_way=on_way)
            if not found.fits:
                raise UserError(remedies(problem, found.plan, stride=stride))
            plans.append(found.plan)
        if stage.whole and smallest is not None and smallest != largest:
            with _named(stage, index, size=smallest):
                cost_network(network, shape=(1, 1, *smallest), precision=config.precision, hardware=hardware)
    return tuple(plans)


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

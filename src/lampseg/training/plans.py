"""One plan for each stage of the curriculum: the configuration as planning problems, solved before anything runs."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from lampseg.config import Config, StageConfig
from lampseg.errors import UserError
from lampseg.hardware.device import Hardware, hardware_for
from lampseg.light import uncollected, uncompiled
from lampseg.parallel.devices import Devices
from lampseg.parallel.rehearsal import rehearse
from lampseg.parallel.spatial.forecast import slab_plan
from lampseg.parallel.spatial.grids import choices_for, grids, slab_plans
from lampseg.parallel.spatial.mixed import by_rank, on_slabs, plan_by_rank
from lampseg.parallel.tiled.forecast import tile_plan
from lampseg.partition import Choices, Plan
from lampseg.partition.costed import CostedNetwork, record_for
from lampseg.partition.plan import Alternative, describe_choices
from lampseg.partition.problem import Problem
from lampseg.partition.questions import remedies
from lampseg.partition.search import Found
from lampseg.training.planned_loss import planned_loss
from lampseg.training.plans_in_tiles import in_tiles, or_in_tiles
from lampseg.training.slab_recompute import best_of, lack, with_recompute
from lampseg.training.smallest import enough_voxels

Size = tuple[int, int, int]
HOPELESS = 1.1
"""Where by a rough plan slabs need so many times the memory, they do not fit."""


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


@uncollected()
@uncompiled()
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
            found = _solved(subject, problem, on_way=on_way)
            if not found.fits:
                solve = in_slabs_if_asked(subject) or Problem.solve
                raise UserError(remedies(problem, found.plan, stride=subject.stride, solve=solve))
            _check_validation(subject, found.plan)
            plans.append(found.plan)
        _try_smallest(subject, index, smallest)
    return tuple(plans)


def in_slabs_if_asked(subject: Subject) -> Callable[[Problem], Found] | None:
    """How problems are solved where the configuration asks for slabs or tiles; None: by stages."""
    parallel = subject.config.parallel
    if parallel.mode == "tiled":
        return lambda problem: in_tiles(problem, tile=parallel.tile, tried=1)
    if parallel.mode != "spatial" and parallel.slabs != "auto":
        return lambda problem: _mixed(subject, problem)
    if parallel.mode != "spatial":
        return None
    return lambda problem: problem.solve() if problem.devices == 1 else _in_slabs(subject, problem, roughly=True)


def _solved(subject: Subject, problem: Problem, *, on_way: Callable[[], None]) -> Found:
    """By the way that the configuration names; by slabs, or stages on slabs, also where nothing else fits.

    Where another plan fits, slabs are named among the alternatives only: their sums over ranks round otherwise than
    one device does, and losses are to follow the number of devices as little as possible.
    """
    mode = subject.config.parallel.mode
    if mode == "spatial":
        return _in_slabs(subject, problem)
    if mode == "tiled":
        return in_tiles(problem, tile=subject.config.parallel.tile)
    if subject.config.parallel.slabs != "auto":
        return _mixed(subject, problem, on_way=on_way)
    if mode == "auto" and problem.devices == 1:
        return or_in_tiles(problem, problem.solve(on_way=on_way), tile=subject.config.parallel.tile)
    if mode != "auto":
        return problem.solve(on_way=on_way)
    try:
        found = problem.solve(on_way=on_way)
    except UserError as error:  # more devices than stages, for instance
        try:
            instead: Found | None = _in_slabs(subject, problem)
        except UserError:
            instead = None
        if instead is None or not instead.fits:
            instead = _any_mixture(subject, problem, on_way=on_way)
        if instead is None:
            raise
        why = Alternative(f"stages on {problem.devices} devices", None, None, f"not possible: {error}")
        return replace(instead, plan=replace(instead.plan, alternatives=(why,)))
    try:
        slabs = _in_slabs(subject, problem, roughly=found.fits, open_to_recompute=not found.fits)
    except UserError as error:
        other = Alternative(f"slabs on {problem.devices} devices", None, None, f"not possible: {error}")
    else:
        if slabs.fits and not found.fits:
            why = Alternative(describe_choices(found.plan.choices), None, found.plan.peak_bytes, "does not fit")
            return replace(slabs, plan=replace(slabs.plan, alternatives=(why,)))
        time = slabs.plan.step_seconds / found.plan.step_seconds - 1
        verdict = f"{time:+.0%} in time, but rounds otherwise than one device; parallel.mode: spatial chooses it"
        if not slabs.fits:
            verdict = "does not fit" + (" without recompute" if problem.recompute is None and found.fits else "")
        label = describe_choices(slabs.plan.choices)
        other = Alternative(label, slabs.plan.step_seconds if slabs.fits else None, slabs.plan.peak_bytes, verdict)
    if not found.fits and (mixed := _any_mixture(subject, problem, on_way=on_way)) is not None:
        why = Alternative(describe_choices(found.plan.choices), None, found.plan.peak_bytes, "does not fit")
        return replace(mixed, plan=replace(mixed.plan, alternatives=(why, other)))
    return replace(
        found,
        plan=replace(found.plan, alternatives=(*found.plan.alternatives[:1], other, *found.plan.alternatives[1:])),
    )


def _in_slabs(subject: Subject, problem: Problem, *, roughly: bool = False, open_to_recompute: bool = True) -> Found:
    """The fastest plan that cuts volumes into slabs, of those that fit; or the one that lacks least.

    Args:
        roughly: take the first grid, and all slabs to be alike: for an alternative that is only named.
        open_to_recompute: where nothing fits, and `parallel.recompute` allows it, let modules run again.

    Raises:
        UserError: the devices can't share volumes; or the network is not known to be exact on slabs.
    """
    replicas = problem.replicas or 1
    if problem.devices % replicas or problem.devices == replicas:
        raise UserError(
            f"parallel.mode: spatial needs at least two devices for each volume; there are {problem.devices} for "
            f"{replicas} copies of the network"
        )
    count = problem.counts()[0]
    model, slabs = problem.costed(count), subject.config.parallel.slabs
    if slabs == "auto":
        plans = list(
            slab_plans(
                model,
                ranks=problem.devices // replicas,
                replicas=replicas,
                micro_batches=count,
                stride=subject.stride,
                loss=problem.loss,
                memory=problem.memory,
                most=1 if roughly else 2,
            )
        )
    else:
        choices = choices_for(model, slabs, micro_batches=count, replicas=replicas)
        if choices.processes != problem.devices:
            raise UserError(
                f"parallel.slabs: {'x'.join(map(str, slabs))} slabs and {replicas} copies of the network are for "
                f"{choices.processes} devices, there are {problem.devices}"
            )
        plans = [
            slab_plan(model, choices, stride=subject.stride, loss=problem.loss, memory=problem.memory, roughly=True)
        ]
    found = [Found(plan, fits=lack(plan, problem) <= 1) for plan in plans]
    found = with_recompute(found, problem, model, stride=subject.stride, allowed=open_to_recompute)
    best = best_of(found, problem)
    if roughly or lack(best.plan, problem) > HOPELESS:
        return best
    plan = slab_plan(model, best.plan.choices, stride=subject.stride, loss=problem.loss, memory=problem.memory)
    exact = [Found(plan, fits=lack(plan, problem) <= 1)]
    return with_recompute(exact, problem, model, stride=subject.stride, exactly=True)[0]


def _mixed(subject: Subject, problem: Problem, *, on_way: Callable[[], None] = lambda: None) -> Found:
    """The best pipeline whose places are shared by the slabs that the configuration gives.

    Raises:
        UserError: they can't share the devices; the network is not known to be exact on slabs, or can't be cut into
            so many stages.
    """
    grid, replicas = subject.config.parallel.slabs, problem.replicas or 1
    assert grid != "auto"
    sharing = math.prod(grid)
    if problem.devices == replicas * sharing:
        return _in_slabs(subject, problem)
    if problem.devices % (replicas * sharing):
        raise UserError(
            f"parallel.slabs: {'x'.join(map(str, grid))} slabs and {replicas} copies of the network take a multiple of "
            f"{replicas * sharing} devices, there are {problem.devices}"
        )
    return by_rank(on_slabs(problem, grid, stride=subject.stride).solve(on_way=on_way))


def _any_mixture(subject: Subject, problem: Problem, *, on_way: Callable[[], None]) -> Found | None:
    """The fastest pipeline on slabs that fits; None: none does. By the grids with the smallest surfaces."""
    best: Found | None = None
    replicas = problem.replicas or 1
    each = problem.devices // replicas
    walk = problem.costed(problem.counts()[-1]).costs.walk
    # Every operation must run somewhere, whatever is recomputed.
    least = max(float(walk[at, at + 1]) for at in range(len(walk)))
    most = max(problem.memory or (math.inf,)) / problem.margin
    for sharing in range(2, each):
        if each % sharing or least / sharing > most:
            continue
        for grid in grids(sharing, size=problem.size, stride=subject.stride)[:1]:
            try:
                found = by_rank(on_slabs(problem, grid, stride=subject.stride).solve(on_way=on_way))
            except UserError:  # not exact on slabs, or more places than stages
                continue
            if found.fits and (best is None or found.plan.step_seconds < best.plan.step_seconds):
                best = found
    return best


@uncollected()
@uncompiled()
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
        if choices.processes != devices.count:
            each = choices.devices * choices.sharing
            raise UserError(
                f"{where}: is for {choices.replicas} x {each} devices, there are {devices.count}: plan with "
                f"--devices {devices.count}, or edit choices.replicas, choices.devices and choices.slabs"
            )
        if choices.micro_batches > stage.batch or (stage.whole and choices.micro_batches != stage.batch):
            exactly = "exactly" if stage.whole else "at most"
            raise UserError(
                f"{where}: choices.micro_batches is {choices.micro_batches}, the batch of {stage.batch} can be cut "
                f"into {exactly} {stage.batch}"
            )
        try:
            if choices.spatial and choices.devices > 1:
                mixed = on_slabs(problem, choices.slabs, stride=subject.stride)
                made = plan_by_rank(mixed.given(choices, digest=plan.digest))
            else:
                made = problem.given(choices, digest=plan.digest, otherwise=_given_slabs(subject, problem, choices))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        _check_validation(subject, made)
        plans.append(made)
        _try_smallest(subject, index, smallest)
    return tuple(plans)


def _given_slabs(subject: Subject, problem: Problem, choices: Choices) -> Callable[[CostedNetwork], Plan] | None:
    """How a plan with slabs or tiles is made of its choices; None: it has none."""
    if choices.tile:
        return lambda model: tile_plan(model, choices, loss=problem.loss, memory=problem.memory)
    if not choices.spatial:
        return None
    return lambda model: slab_plan(model, choices, stride=subject.stride, loss=problem.loss, memory=problem.memory)


def _check_validation(subject: Subject, plan: Plan) -> None:
    """Raises UserError if the plan can't segment the validation cases as the configuration says."""
    if plan.choices.spatial and subject.config.validation.window == "patch":
        raise UserError(
            f"validation.window: patch: sliding windows are not cut into slabs, and the plan is {plan.headline()}; use "
            "validation.window: whole, or parallel.mode: pipeline without slabs"
        )


def _try_smallest(subject: Subject, index: int, smallest: Size | None) -> None:
    """Whether the network runs on the smallest whole volume, too."""
    stage = subject.config.curriculum[index]
    if stage.whole and smallest is not None and smallest != subject.volume:
        with _named(stage, index, size=smallest):
            record_for(
                subject.network,
                shape=(1, subject.channels, *smallest),
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

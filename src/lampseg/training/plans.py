"""One plan for each stage of the curriculum: the configuration as planning problems, solved before anything runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from lampseg.config import StageConfig
from lampseg.errors import UserError
from lampseg.light import uncollected, uncompiled
from lampseg.parallel.spatial.forecast import slab_plan
from lampseg.parallel.spatial.mixed import on_slabs, plan_by_rank
from lampseg.parallel.tiled.forecast import tile_plan
from lampseg.partition import Choices, Plan
from lampseg.partition.costed import CostedNetwork, record_for
from lampseg.partition.plan import Alternative, describe_choices
from lampseg.partition.problem import Problem
from lampseg.partition.questions import remedies
from lampseg.partition.search import Found
from lampseg.training.plans_in_tiles import in_tiles, or_in_tiles
from lampseg.training.plans_on_slabs import any_mixture, in_slabs, mixed
from lampseg.training.smallest import enough_voxels
from lampseg.training.subject import Subject
from lampseg.training.ways import ways_of

Size = tuple[int, int, int]


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
                raise UserError(remedies(problem, found.plan, stride=subject.stride, ways=ways_of(subject)))
            _check_validation(subject, found.plan)
            plans.append(found.plan)
        _try_smallest(subject, index, smallest)
    return tuple(plans)


def _solved(subject: Subject, problem: Problem, *, on_way: Callable[[], None]) -> Found:
    """By the way that the configuration names; by slabs, or stages on slabs, also where nothing else fits.

    Where another plan fits, slabs are named among the alternatives only: their sums over ranks round otherwise than
    one device does, and losses are to follow the number of devices as little as possible.
    """
    mode = subject.config.parallel.mode
    if mode == "spatial":
        return in_slabs(subject, problem)
    if mode == "tiled":
        return in_tiles(problem, tile=subject.config.parallel.tile)
    if subject.config.parallel.slabs != "auto":
        return mixed(subject, problem, on_way=on_way)
    if mode == "auto" and problem.devices == 1:
        return or_in_tiles(problem, problem.solve(on_way=on_way), tile=subject.config.parallel.tile, named=True)
    if mode != "auto":
        return problem.solve(on_way=on_way)
    try:
        found = problem.solve(on_way=on_way)
    except UserError as error:  # more devices than stages, for instance
        try:
            instead: Found | None = in_slabs(subject, problem, closest=False)
        except UserError:
            instead = None
        if instead is None or not instead.fits:
            instead = any_mixture(subject, problem, on_way=on_way)
        if instead is None:
            raise
        why = Alternative(f"stages on {problem.devices} devices", None, None, f"not possible: {error}")
        return replace(instead, plan=replace(instead.plan, alternatives=(why,)))
    if found.fits:
        other = _beside(subject, problem, found)
        alternatives = (*found.plan.alternatives[:1], other, *found.plan.alternatives[1:])
        return replace(found, plan=replace(found.plan, alternatives=alternatives))
    why = Alternative(describe_choices(found.plan.choices), None, found.plan.peak_bytes, "does not fit")
    with suppress(UserError):
        slabs = in_slabs(subject, problem, closest=False)
        if slabs.fits:
            return replace(slabs, plan=replace(slabs.plan, alternatives=(why,)))
    found_mixed = any_mixture(subject, problem, on_way=on_way)
    if found_mixed is None:
        return found
    other = _beside(subject, problem, found)
    return replace(found_mixed, plan=replace(found_mixed.plan, alternatives=(why, other)))


def _beside(subject: Subject, problem: Problem, found: Found) -> Alternative:
    """What slabs alone would do, beside a plan of stages."""
    try:
        slabs = in_slabs(subject, problem, roughly=found.fits, open_to_recompute=not found.fits)
    except UserError as error:
        return Alternative(f"slabs on {problem.devices} devices", None, None, f"not possible: {error}")
    time = slabs.plan.step_seconds / found.plan.step_seconds - 1
    verdict = f"{time:+.0%} in time, but rounds otherwise than one device; parallel.mode: spatial chooses it"
    if not slabs.fits:
        verdict = "does not fit" + (" without recompute" if problem.recompute is None and found.fits else "")
    label = describe_choices(slabs.plan.choices)
    return Alternative(label, slabs.plan.step_seconds if slabs.fits else None, slabs.plan.peak_bytes, verdict)


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
                problem = on_slabs(problem, choices.slabs, stride=subject.stride)
                made = plan_by_rank(problem.given(choices, digest=plan.digest))
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

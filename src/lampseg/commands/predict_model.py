"""The model of a run for `predict`: which weights, and how it is split for images of a shape."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lampseg.commands.predict_options import PredictOptions
from lampseg.commands.run_folder import Task
from lampseg.config import Config
from lampseg.data.headers import network_shape
from lampseg.errors import UserError
from lampseg.hardware.device import Hardware, hardware_for
from lampseg.inference.inputs import InputCase
from lampseg.inference.padding import padded_shape
from lampseg.networks import build_network, on_meta
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.spatial.grids import grids
from lampseg.parallel.tiled.forecast import inference_tile
from lampseg.parallel.world import World
from lampseg.partition import Choices, Plan, make_plan, plans_from_json
from lampseg.training.checkpoint import check_fits, load_weights, step_checkpoints
from lampseg.training.smallest import enough_voxels

Shape = tuple[int, ...]


def readable(
    cases: Sequence[InputCase], *, options: PredictOptions, config: Config, task: Task
) -> tuple[dict[str, Shape], dict[str, str]]:
    """What the headers tell: what the network is given at once of each case, by its name; and what is wrong."""
    shapes: dict[str, Shape] = {}
    faults: dict[str, str] = {}
    for case in cases:
        try:
            shape = network_shape(case.images, data=config.data)
        except UserError as error:
            faults[case.name] = str(error)
            continue
        shapes[case.name] = input_shape(shape, options=options, task=task)
    return shapes, faults


def input_shape(shape: Sequence[int], *, options: PredictOptions, task: Task) -> Shape:
    """What the network is given at once of a volume (X, Y, Z) on its grid: (N, C, X, Y, Z)."""
    channels = len(task.channels)
    window = options.sliding()
    if window is None:
        return padded_shape(shape, task.stride, channels=channels)
    return (window.per_pass, channels, *window.size)


def largest(shapes: dict[str, Shape]) -> Shape:
    """The one with most voxels: for it the network is split."""
    return max(shapes.values(), key=math.prod)


def trained_in_slabs(run: Path, config: Config) -> bool:
    """Whether a run's largest inputs were cut into slabs: as the configuration asked for, or as its plan says."""
    if config.parallel.mode == "spatial":
        return True
    choices = _largest_choices(run)
    return choices is not None and choices.spatial


def grid_of_stages(run: Path) -> tuple[int, int, int] | None:
    """The slabs on which each stage of a run's largest inputs ran; None if it had no several stages, or no slabs."""
    choices = _largest_choices(run)
    if choices is None or not choices.spatial or choices.devices == 1:
        return None
    x, y, z = (*choices.slabs, 1, 1)[:3]
    return (x, y, z)


def _largest_choices(run: Path) -> Choices | None:
    try:
        plans = plans_from_json((run / "plan.json").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, UserError):
        return None  # of an older version, or only the weights were kept: any way to predict will do
    return max(plans, key=lambda plan: math.prod(plan.input_shape[2:])).choices if plans else None


def check_plan(run: Path, shape: Shape, *, options: PredictOptions, config: Config, task: Task, devices: int) -> None:
    """Whether the network takes such an input on so many devices, before anything starts.

    Raises:
        UserError: it does not.
    """
    network = on_meta(lambda: _network(config, task))
    network.eval()
    where = "the largest image" if options.window is None else "--window"
    remedy = "use a larger --window" if options.window else "segment it with --window, which pads it"
    with enough_voxels(where, shape[2:], remedy=remedy):
        slabs = trained_in_slabs(run, config)
        _plan(
            network,
            shape,
            options=options,
            config=config,
            task=task,
            devices=devices,
            slabs=slabs,
            grid=grid_of_stages(run),
        )


def load_model(
    run: Path, options: PredictOptions, *, config: Config, task: Task, world: World, shape: Shape
) -> ParallelModel:
    """The run's network with a checkpoint's weights, split over the ranks for inputs such as `shape`."""
    network = _network(config, task)
    file = weights_file(run, options.checkpoint)
    weights = load_weights(file)
    check_fits(network, weights, source=str(file))
    network.load_state_dict(weights)
    network.eval()
    plan: Any = None
    if world.first:
        hardware = hardware_for(kind="cuda" if world.device.type == "cuda" else "cpu", processes=world.size)
        slabs = trained_in_slabs(run, config)
        plan = _plan(
            network,
            shape,
            options=options,
            config=config,
            task=task,
            devices=world.size,
            slabs=slabs,
            grid=grid_of_stages(run),
            hardware=hardware,
        )
        if world.size == 1 and options.window is None and trained_in_tiles(run, config):
            tile = inference_tile(shape[2]) if config.parallel.tile == "auto" else config.parallel.tile
            plan = replace(plan, choices=replace(plan.choices, tile=tile))
    plan = world.broadcast(plan)
    del weights
    return ParallelModel(network, plan, world=world, training=False, stride=task.stride)


def trained_in_tiles(run: Path, config: Config) -> bool:
    """Whether a run trained in tiles: as it was asked to, or because nothing else fitted."""
    if config.parallel.mode != "auto":
        return config.parallel.mode == "tiled"
    try:
        plans = plans_from_json((run / "plan.json").read_text(encoding="utf-8"))
    except (OSError, UserError):  # weights may be all that is there
        return False
    return any(plan.choices.tile for plan in plans)


def _network(config: Config, task: Task) -> nn.Module:
    network = build_network(config.network, in_channels=len(task.channels), out_channels=len(task.classes))
    return network.double() if config.precision == "float64" else network


def _plan(
    network: nn.Module,
    shape: Shape,
    *,
    options: PredictOptions,
    config: Config,
    task: Task,
    devices: int,
    slabs: bool,
    grid: tuple[int, int, int] | None,
    hardware: Hardware | None = None,
) -> Plan:
    """Slabs of whole volumes, if asked for, or stages on the slabs of a grid; else stages of the network.

    Raises:
        UserError: the network can't be split so.
    """
    in_slabs = slabs and options.window is None and devices > 1
    # As it was trained, if so many devices can be shared so; else by slabs alone.
    mixed = (1, 1, 1)
    if in_slabs and grid is not None and devices % math.prod(grid) == 0 and devices > math.prod(grid):
        in_slabs, mixed = False, grid
    plan = make_plan(
        network,
        shape=shape,
        devices=1 if in_slabs else devices // math.prod(mixed),
        precision=config.precision,
        hardware=hardware,
        training=False,
    )
    if not in_slabs:
        return replace(plan, choices=replace(plan.choices, slabs=mixed))
    found = grids(devices, size=shape[2:], stride=task.stride)
    if not found:
        raise UserError(
            f"a volume of {list(shape[2:])} voxels can't be cut into {devices} slabs of at least {list(task.stride)}: "
            "use fewer --devices, or a --window"
        )
    return replace(plan, choices=replace(plan.choices, slabs=found[0]))


def weights_file(run: Path, checkpoint: str) -> Path:
    """The file that best, last, stage-N or a path names.

    Raises:
        UserError: there is none; those that there are, are listed.
    """
    folder = run / "checkpoints"
    if checkpoint == "last":
        steps = step_checkpoints(folder)
        if steps:
            return steps[-1] / "network.safetensors"
    elif (folder / f"{checkpoint}.safetensors").is_file():
        return folder / f"{checkpoint}.safetensors"
    elif Path(checkpoint).is_file():
        return Path(checkpoint)
    there = sorted(path.stem for path in folder.glob("*.safetensors"))
    there += ["last"] if step_checkpoints(folder) else []
    raise UserError(
        f"{run}: has no checkpoint `{checkpoint}`; there is {', '.join(there) or 'none yet: train it first'}"
    )

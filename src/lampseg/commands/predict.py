"""`predict`: segments images with the model of a run, on any number of devices."""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from lampseg.commands.run_folder import Task, check_writable, read_task
from lampseg.config import Config, load_config
from lampseg.data.headers import network_shape
from lampseg.data.volume import remove_if_there
from lampseg.errors import UserError
from lampseg.evaluation.tables import write_text
from lampseg.hardware.device import Hardware, hardware_for
from lampseg.inference.predictor import Prediction, Predictor, output_name
from lampseg.inference.segment import SlidingWindow
from lampseg.networks import build_network, on_meta
from lampseg.parallel.devices import parse_devices
from lampseg.parallel.launch import is_worker, launch
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.spatial.grids import grids
from lampseg.parallel.world import World, membership
from lampseg.partition import Plan, make_plan
from lampseg.training.checkpoint import check_fits, load_weights, step_checkpoints
from lampseg.training.smallest import enough_voxels
from lampseg.training.validation import padded_shape

RECORD = "predictions.json"


@dataclass(frozen=True)
class PredictOptions:
    """What to predict with, beside the run and the images."""

    checkpoint: str = "best"
    """best, last, stage-N, or the path of a safetensors file."""
    window: tuple[int, int, int] | None = None
    """Sliding window in voxels; None: the whole volume in one pass."""
    overlap: float = 0.25
    """Of sliding windows, as a fraction."""

    def checked(self, task: Task) -> "PredictOptions":
        """These options, with the window that the network needs if it takes one size only.

        Raises:
            UserError: the numbers are not possible for the network.
        """
        stride = task.stride
        if not 0 <= self.overlap < 1:
            raise UserError(f"--overlap: {self.overlap} is not a fraction from 0 to below 1")
        if self.window is not None and any(size < 1 or size % step for size, step in zip(self.window, stride)):
            fitting = [max(step, round(size / step) * step) for size, step in zip(self.window, stride)]
            raise UserError(
                f"--window: {list(self.window)} is not a multiple of the network's total stride {list(stride)}; use "
                f"for instance {fitting}"
            )
        if task.window is None:
            return self
        if self.window not in (None, task.window):
            raise UserError(
                f"--window: {list(self.window or ())} is not possible, the network only takes volumes of "
                f"{list(task.window)} voxels; leave --window out"
            )
        return dataclasses.replace(self, window=task.window)

    def sliding(self) -> SlidingWindow | None:
        return None if self.window is None else SlidingWindow(self.window, self.overlap)

    def arguments(self) -> list[str]:
        """The same as command-line arguments."""
        window = [] if self.window is None else ["--window", *(str(size) for size in self.window)]
        return ["--checkpoint", self.checkpoint, *window, "--overlap", str(self.overlap)]


def predict(
    run: Path,
    images: Sequence[Path],
    *,
    out: Path,
    devices: int | str | None = None,
    options: PredictOptions | None = None,
) -> None:
    """Writes `<image name>.nii.gz`, integer labels on each image's own grid and affine, into `out`.

    `out/predictions.json` lists what was written and the seconds each volume took.

    Args:
        images: NIfTI files or folders of them.
        devices: None takes the run's `parallel.devices`.

    Raises:
        UserError: no such run or checkpoint, no image, or an image that can't be read; what was written before is
            complete.
        WorkerError: a process failed.
    """
    task = read_task(run)
    options = (options or PredictOptions()).checked(task)
    config = load_config(run / "config.yaml")
    files = image_files(images)
    weights_file(run, options.checkpoint)
    if is_worker():
        _work(run, files, out=out, options=options, config=config, task=task)
        return
    use = parse_devices(config.parallel.devices if devices is None else devices)
    for file in files:
        if file.resolve() == (out / output_name(file)).resolve():
            raise UserError(f"{file}: the prediction would overwrite it; choose another --out")
    _check_images(files, options=options, config=config, task=task, stages=use.count)
    check_writable(out, option="--out")
    remove_if_there(out / RECORD)  # it would list an earlier call's results
    if use.count > 1:
        launch(
            [
                *("predict", "--run", str(run), "--out", str(out), *options.arguments()),
                *("--", *(str(file) for file in files)),
            ],
            processes=use.count,
        )
    else:
        _work(run, files, out=out, options=options, config=config, task=task)


def _work(run: Path, files: Sequence[Path], *, out: Path, options: PredictOptions, config: Config, task: Task) -> None:
    with membership(device="cuda" if torch.cuda.is_available() else "cpu", timeout=config.parallel.timeout) as world:
        model = load_model(run, options, config=config, task=task, world=world, like=files[0])
        predictor = Predictor(model, config=config, channels=len(task.channels), stride=task.stride)
        written: list[Prediction] = []
        console = Console()
        for prediction in predictor.predict(files, out=out, window=options.sliding()):
            written.append(prediction)
            console.print(
                f"{prediction.output}: {prediction.seconds:.2f} s", markup=False, highlight=False, soft_wrap=True
            )
        everywhere = written_by_all(model, written, files=files)
        if model.yields_output and model.mesh.replica == 0:
            record: dict[str, Any] = {
                "checkpoint": options.checkpoint,
                "window": options.window,
                "overlap": None if options.window is None else options.overlap,
                "devices": world.size,
                "predictions": [
                    {"image": str(p.image), "output": p.output.name, "seconds": p.seconds} for p in everywhere
                ],
            }
            write_text(out / RECORD, json.dumps(record, indent=1))
        world.gather(None)  # nobody leaves before all is written


def written_by_all(model: ParallelModel, written: Sequence[Prediction], *, files: Sequence[Path]) -> list[Prediction]:
    """What all ranks have written, in the order of the files."""
    found: Any = model.world.gather(list(written))
    by_image = {prediction.image: prediction for predictions in found for prediction in predictions}
    return [by_image[file] for file in files]


def _check_images(files: Sequence[Path], *, options: PredictOptions, config: Config, task: Task, stages: int) -> None:
    """What the headers tell: whether all images can be segmented, and on so many devices, before anything starts."""
    network = on_meta(lambda: _network(config, task))
    network.eval()
    shapes = {file: _input_shape(file, options=options, config=config, task=task) for file in files}
    smallest = min(files, key=lambda file: math.prod(shapes[file]))
    for file in dict.fromkeys((files[0], smallest)):
        where = str(file) if options.window is None else "--window"
        remedy = "use a larger --window" if options.window else "segment it with --window, which pads it"
        with enough_voxels(where, shapes[file][2:], remedy=remedy):
            _plan(network, shapes[file], options=options, config=config, task=task, devices=stages)


def _input_shape(file: Path, *, options: PredictOptions, config: Config, task: Task) -> tuple[int, ...]:
    """What the network is given of an image at once, (1, C, X, Y, Z)."""
    channels = len(task.channels)
    shape = network_shape((file,), data=config.data)
    if options.window is None:
        return padded_shape(shape, task.stride, channels=channels)
    return (1, channels, *options.window)


def _network(config: Config, task: Task) -> nn.Module:
    network = build_network(config.network, in_channels=len(task.channels), out_channels=len(task.classes))
    return network.double() if config.precision == "float64" else network


def load_model(
    run: Path, options: PredictOptions, *, config: Config, task: Task, world: World, like: Path
) -> ParallelModel:
    """The run's network with a checkpoint's weights, split over the ranks for an image such as `like`."""
    network = _network(config, task)
    file = weights_file(run, options.checkpoint)
    weights = load_weights(file)
    check_fits(network, weights, source=str(file))
    network.load_state_dict(weights)
    network.eval()
    # One rank may be alone in seeing the file; the others follow its plan.
    plan: Any = None
    if world.first:
        shape = _input_shape(like, options=options, config=config, task=task)
        hardware = hardware_for(kind="cuda" if world.device.type == "cuda" else "cpu", processes=world.size)
        plan = _plan(network, shape, options=options, config=config, task=task, devices=world.size, hardware=hardware)
    plan = world.broadcast(plan)
    del weights
    return ParallelModel(network, plan, world=world, training=False, stride=task.stride)


def _plan(
    network: nn.Module,
    shape: tuple[int, ...],
    *,
    options: PredictOptions,
    config: Config,
    task: Task,
    devices: int,
    hardware: Hardware | None = None,
) -> Plan:
    """Slabs of whole volumes, if the run was trained so; else stages of the network.

    Raises:
        UserError: the network can't be split so.
    """
    in_slabs = config.parallel.mode == "spatial" and options.window is None and devices > 1
    plan = make_plan(
        network,
        shape=shape,
        devices=1 if in_slabs else devices,
        precision=config.precision,
        hardware=hardware,
        training=False,
    )
    if not in_slabs:
        return plan
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


def image_files(images: Sequence[Path]) -> list[Path]:
    """The images themselves and those in folders (AppleDouble files left out), in order.

    Raises:
        UserError: a path does not exist, a folder has no image, or two images have one name.
    """
    files: list[Path] = []
    for path in images:
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.name.endswith((".nii", ".nii.gz")) and p.name[0] != ".")
            if not found:
                raise UserError(f"{path}: there is no .nii or .nii.gz file in this folder")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    names: dict[str, Path] = {}
    for file in files:
        other = names.setdefault(output_name(file), file)
        if other is not file:
            raise UserError(f"{file} and {other} would be written to the same {output_name(file)}: predict them apart")
    if not files:
        raise UserError("predict: no image given; name NIfTI files, or folders of them")
    return files

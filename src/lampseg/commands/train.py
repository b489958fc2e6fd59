"""`train`: prepares the run in this process, starts one process per device, and trains the curriculum."""

import difflib
import os
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from lampseg.commands.run_folder import Task, begin_run, check_run_folder
from lampseg.config import Config
from lampseg.data import dataset_of
from lampseg.data.split import check_recorded, split_to_json
from lampseg.errors import OutOfMemory, UserError
from lampseg.evaluation import plan_lines, write_report
from lampseg.evaluation.tables import write_text
from lampseg.hardware.machine import threads_per_process
from lampseg.networks import on_meta
from lampseg.parallel.devices import Devices, Kind, parse_devices
from lampseg.parallel.launch import is_worker, launch, prepared_by_launcher
from lampseg.parallel.world import World, keep_to_stated_memory, membership
from lampseg.partition import Plan, plans_from_json, plans_to_json
from lampseg.partition.show import plan_paragraph
from lampseg.training.job import Job, largest_volume, padded_stages, prepare_job, smallest_volume
from lampseg.training.out_of_memory import RECORD, learnt, read_shortage
from lampseg.training.plans import make_plans, plans_given
from lampseg.training.subject import Subject, hardware_of
from lampseg.training.trainer import Trainer

RMSPROP_OPTIONS = ("alpha", "eps", "momentum", "weight_decay", "centered")
"""Of torch.optim.RMSprop; the others decide how it computes, not what."""


def train(config: Config, *, run: Path, resume: bool = False, plan: Path | None = None) -> None:
    """Trains `config` and leaves the run folder `run`.

    With several devices this process only prepares and waits; the work is done by one process per device, which this
    function starts. Under torchrun it joins the given processes instead.

    Args:
        plan: a file of plans whose choices are taken instead of the planner's (`lampseg plan --json`, maybe edited).

    Raises:
        UserError: anything wrong with the data, the configuration or the folder; nothing has been trained then.
        OutOfMemory: a device ran out of memory, twice, or no plan needs less; the last checkpoint is unharmed.
        WorkerError: a process failed; the last checkpoint is unharmed.
    """
    if is_worker():
        _work(config, run=run, resume=resume, plan=plan)
        return
    devices = parse_devices(config.parallel.devices)
    console = Console()
    _prepare(config, run=run, devices=devices, resume=resume, plan=plan, console=console)
    try:
        _execute(config, run=run, devices=devices, resume=resume)
    except OutOfMemory as error:
        shortage = read_shortage(run)
        if not config.parallel.replan or plan is not None or shortage is None or shortage.during != "training":
            raise
        console.print(f"{error}. Planning again with a margin", markup=False, highlight=False, soft_wrap=True)
        less, margin = learnt(shortage, devices)
        _prepare(config, run=run, devices=less, resume=True, plan=None, console=console, margin=margin)
        _execute(config, run=run, devices=devices, resume=True)


def _execute(config: Config, *, run: Path, devices: Devices, resume: bool) -> None:
    """Runs the prepared plans, on processes of their own if there are several devices."""
    (run / RECORD).unlink(missing_ok=True)
    if devices.count > 1:
        flags = ["--resume"] if resume else []
        launch(["train", str(run / "config.yaml"), "--run", str(run), *flags], processes=devices.count)
    else:
        if devices.kind == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(threads_per_process(1))
        _work(config, run=run, resume=resume, prepared=True)


def _prepare(
    config: Config,
    *,
    run: Path,
    devices: Devices,
    resume: bool,
    plan: Path | None,
    console: Console | None,
    margin: float = 1.0,
) -> tuple[Job, tuple[Plan, ...]]:
    """Everything that can be refused is refused here, before the first process starts."""
    check_optimizer(config)
    dataset = dataset_of(config.data)
    check_run_folder(run, config, resume=resume)
    with Progress(console=console, disable=console is None or not console.is_terminal, transient=True) as progress:
        bar = progress.add_task("preparing volumes", total=len(dataset.training))
        job = prepare_job(config, cache=run / "preprocessed", on_case=lambda _: progress.advance(bar))
    split = split_to_json(job.training, job.validation, job.dataset.test)
    check_recorded(run / "split.json", split, resume=resume)
    if console is not None:
        for name in job.unseen:
            console.print(f"note: no training case has an annotated voxel of {name}; it cannot be learnt", markup=False)
    network = on_meta(job.build)
    plans = _plans(job, network, devices=devices, given=plan, margin=margin)
    begin_run(run, config, Task(job.classes, job.stride, job.window, job.dataset.channels))
    write_text(run / "plan.json", plans_to_json(plans))
    write_text(run / "split.json", split)
    if console is not None:
        for number, made in enumerate(plans, start=1):
            console.print(f"curriculum stage {number}: {plan_paragraph(made)}", markup=False, highlight=False)
    return job, plans


def _plans(job: Job, network: nn.Module, *, devices: Devices, given: Path | None, margin: float) -> tuple[Plan, ...]:
    config = job.config
    hardware = hardware_of(config, devices)
    subject = Subject(
        config,
        network,
        len(job.classes),
        job.stride,
        largest_volume(job),
        devices=devices,
        hardware=hardware,
        channels=job.channels,
        padded=padded_stages(job),
    )
    if given is not None:
        return plans_given(subject, read_plans(given), source=str(given), smallest=smallest_volume(job))
    return make_plans(subject, smallest=smallest_volume(job), margin=margin)


def read_plans(path: Path) -> tuple[Plan, ...]:
    """Raises UserError if the file can't be read, or holds no plans."""
    try:
        return plans_from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the plans cannot be read ({error}); give a file of `lampseg plan --json`") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _work(config: Config, *, run: Path, resume: bool, prepared: bool = False, plan: Path | None = None) -> None:
    """One process of the run."""
    kind: Kind = "cuda" if torch.cuda.is_available() else "cpu"
    with membership(device=kind, timeout=config.parallel.timeout) as world:
        keep_to_stated_memory(config.parallel.devices, world=world)
        if not (prepared or prepared_by_launcher()):
            _prepare_on_first(config, run=run, world=world, kind=kind, resume=resume, plan=plan)
        job = prepare_job(config, cache=run / "preprocessed")
        plans = plans_from_json((run / "plan.json").read_text())
        Trainer(job, plans, world=world, run=run, resume=resume).train()
        if world.first:
            console = Console()
            for line in plan_lines(run):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
            write_report(run)
            console.print(f"report: {run / 'report.html'}", markup=False, highlight=False)


def _prepare_on_first(config: Config, *, run: Path, world: World, kind: Kind, resume: bool, plan: Path | None) -> None:
    """Under torchrun nobody has prepared the run: rank 0 does, and all learn whether it went well."""
    fault: Any = None
    if world.first:
        stated = parse_devices(config.parallel.devices, planning=True).memory
        memory = stated if stated is None or len(stated) == world.size else stated[:1] * world.size
        devices = Devices(world.size, kind, memory)
        try:
            _prepare(config, run=run, devices=devices, resume=resume, plan=plan, console=None)
        except UserError as error:
            fault = str(error)
    fault = world.broadcast(fault)
    if fault is not None:
        raise UserError(fault)


def check_optimizer(config: Config) -> None:
    """Raises UserError if torch's RMSprop does not take `optimizer.kwargs`."""
    for name in config.optimizer.kwargs:
        if name not in RMSPROP_OPTIONS:
            near = difflib.get_close_matches(name, RMSPROP_OPTIONS, n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has {', '.join(RMSPROP_OPTIONS)}"
            more = "; the learning rate is set by `curriculum`" if name == "lr" else ""
            raise UserError(f"optimizer.kwargs: RMSprop has no option `{name}` here: {hint}{more}")
    try:
        torch.optim.RMSprop([torch.zeros(1)], lr=1.0, **config.optimizer.kwargs)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer.kwargs: RMSprop refuses {config.optimizer.kwargs}: {error}") from error

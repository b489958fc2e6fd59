"""`predict`: segments images with the model of a run, on any number of devices."""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from lampseg.commands.predict_model import check_plan, largest, load_model, readable, weights_file
from lampseg.commands.predict_options import PredictOptions
from lampseg.commands.run_folder import Task, check_writable, read_task
from lampseg.config import Config, load_config
from lampseg.data.volume import remove_if_there
from lampseg.errors import PartlyDone, UserError
from lampseg.evaluation.tables import write_text
from lampseg.inference.inputs import InputCase, cases_of, check_apart
from lampseg.inference.predictor import Prediction, Predictor
from lampseg.inference.probability_file import SUFFIX
from lampseg.parallel.devices import parse_devices
from lampseg.parallel.launch import is_worker, launch, prepared_by_launcher
from lampseg.parallel.world import membership

RECORD = "predictions.json"

__all__ = ["RECORD", "PredictOptions", "predict"]


@dataclass(frozen=True)
class _Todo:
    """What a call has to do."""

    cases: tuple[InputCase, ...]
    """To segment, in order; what can't even be opened is left out."""
    shape: tuple[int, ...] | None
    """For which the network is split; None: there is nothing to do."""
    faults: dict[str, str]
    """By case name."""
    done: tuple[InputCase, ...]
    """Left out, as their results are there."""
    order: tuple[InputCase, ...]
    """All of them."""


def predict(
    run: Path,
    images: Sequence[Path],
    *,
    out: Path,
    devices: int | str | None = None,
    options: PredictOptions | None = None,
) -> None:
    """Writes `<case name>.nii.gz`, integer labels on each image's own grid and affine, into `out`.

    `out/predictions.json` lists what was written, the seconds each volume took, and what could not be segmented.

    Args:
        images: files, folders of them, or a dataset.json; see `cases_of`.
        devices: None takes the run's `parallel.devices`.

    Raises:
        UserError: no such run or checkpoint, no image, impossible options, or a result can't be written; what was
            written before is complete.
        PartlyDone: some images can't be segmented; all others are.
        WorkerError: a process failed.
    """
    task = read_task(run)
    options = (options or PredictOptions()).checked(task)
    config = load_config(run / "config.yaml")
    weights_file(run, options.checkpoint)
    if is_worker():
        _work(run, images, out=out, options=options, config=config, task=task)
        return
    use = parse_devices(config.parallel.devices if devices is None else devices)
    todo = _todo(images, out=out, options=options, config=config, task=task)
    if todo.shape is not None:
        check_plan(run, todo.shape, options=options, config=config, task=task, devices=use.count)
    check_writable(out, option="--out")
    earlier = _earlier(out, options) if options.skip_existing else {}
    remove_if_there(out / RECORD)  # it would list an earlier call's results
    if use.count > 1 and todo.shape is not None:
        launch(
            [
                *("predict", "--run", str(run), "--out", str(out), *options.arguments()),
                *("--", *(str(path) for path in images)),
            ],
            processes=use.count,
        )
    else:
        _work(run, images, out=out, options=options, config=config, task=task)
    _finish(out, todo, earlier)


def _todo(images: Sequence[Path], *, out: Path, options: PredictOptions, config: Config, task: Task) -> _Todo:
    order = cases_of(images, channels=len(task.channels))
    check_apart(order, out)
    done: list[InputCase] = []
    if options.skip_existing:
        wanted = (".nii.gz", SUFFIX) if options.probabilities else (".nii.gz",)
        done = [case for case in order if all((out / f"{case.name}{suffix}").is_file() for suffix in wanted)]
    left = [case for case in order if case not in done]
    shapes, faults = readable(left, options=options, config=config, task=task)
    return _Todo(
        tuple(case for case in left if case.name in shapes),
        largest(shapes) if shapes else None,
        faults,
        tuple(done),
        tuple(order),
    )


def _work(run: Path, images: Sequence[Path], *, out: Path, options: PredictOptions, config: Config, task: Task) -> None:
    with membership(device="cuda" if torch.cuda.is_available() else "cpu", timeout=config.parallel.timeout) as world:
        # The first rank looks: the others might see files that it has written meanwhile, or none of another machine's.
        todo: Any = None
        if world.first:
            todo = _todo(images, out=out, options=options, config=config, task=task)
        todo = world.broadcast(todo)
        written: list[Prediction] = []
        faults: dict[str, str] = dict(todo.faults)
        if todo.shape is not None:
            model = load_model(run, options, config=config, task=task, world=world, shape=todo.shape)
            predictor = Predictor(
                model, data=config.data, channels=len(task.channels), stride=task.stride, precision=config.precision
            )
            with _progress(len(todo.cases), shown=world.first) as advance:
                for prediction in predictor.predict(
                    todo.cases,
                    out=out,
                    result=options.result(task),
                    window=options.sliding(),
                    mirror=options.mirrored(task),
                    on_group=advance,
                ):
                    written.append(prediction)
                    Console().print(
                        f"{prediction.output}: {prediction.seconds:.2f} s",
                        markup=False,
                        highlight=False,
                        soft_wrap=True,
                    )
            faults |= predictor.faults
        everywhere: Any = world.gather((written, faults))  # nobody leaves before all is written
        if world.first:
            _record(out, todo, everywhere, options=options, devices=world.size)
            if is_worker() and not prepared_by_launcher():
                with contextlib.suppress(PartlyDone):  # torchrun would take it for a failure of the process
                    _finish(out, todo, {}, say=True)


def _record(
    out: Path,
    todo: _Todo,
    everywhere: Sequence[tuple[Sequence[Prediction], dict[str, str]]],
    *,
    options: PredictOptions,
    devices: int,
) -> None:
    """Writes the list of results, in the order of the cases."""
    found = {prediction.output.name: prediction for written, _ in everywhere for prediction in written}
    faults = {name: fault for _, some in everywhere for name, fault in some.items()}
    record = {
        **options.record(),
        "devices": devices,
        "predictions": [
            {"image": str(case.images[0]), "output": case.output, "seconds": found[case.output].seconds}
            for case in todo.cases
            if case.output in found
        ],
        "faults": [
            {"image": str(case.images[0]), "fault": faults[case.name]} for case in todo.order if case.name in faults
        ],
    }
    missing = [case.name for case in todo.cases if case.output not in found and case.name not in faults]
    assert not missing, f"neither written nor at fault: {missing}"
    write_text(out / RECORD, json.dumps(record, indent=1))


def _finish(out: Path, todo: _Todo, earlier: dict[str, Any], *, say: bool = False) -> None:
    """Adds earlier results to the list, and names what could not be segmented.

    Raises:
        PartlyDone: there is such an image.
    """
    record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    if todo.done:
        kept = {entry["output"]: entry for entry in record["predictions"]}
        for case in todo.done:
            blank = {"image": str(case.images[0]), "output": case.output, "seconds": None}
            kept[case.output] = earlier.get(case.output, blank)
        record["predictions"] = [kept[case.output] for case in todo.order if case.output in kept]
        write_text(out / RECORD, json.dumps(record, indent=1))
        Console().print(f"{len(todo.done)} of {len(todo.order)} were there", markup=False, highlight=False)
    if record["faults"]:
        texts = [entry["fault"] for entry in record["faults"]]
        message = (
            f"{len(texts)} of {len(todo.order)} images could not be segmented, the others are in {out}:\n  "
            + "\n  ".join(texts)
        )
        if say:
            Console(stderr=True).print(f"lampseg: {message}", markup=False, highlight=False, soft_wrap=True)
        raise PartlyDone(message)


def _earlier(out: Path, options: PredictOptions) -> dict[str, Any]:
    """The results that an earlier call's list names, by file; none if there is no list, as after a call that was ended.

    Raises:
        UserError: they were made with other options.
    """
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
        entries = {entry["output"]: entry for entry in record["predictions"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    now = options.record()
    other = [
        f"{name} was {record[name]!r}, now {now[name]!r}" for name in now if record.get(name, now[name]) != now[name]
    ]
    if other:
        raise UserError(
            f"{out}: --skip-existing would mix results: {'; '.join(other)}. Choose another --out, or leave "
            "--skip-existing out to make all of them again"
        )
    return entries


@contextlib.contextmanager
def _progress(total: int, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A bar on standard error, if that is a terminal; gives a function to call with how many images are done."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield lambda count: None
        return
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("images", total=total)
        yield lambda count: progress.advance(task, count)

"""`reproduce`: the paper's experiments on one dataset, from its folder to the filled tables, skipping what is done."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from lampseg.commands.predict import RECORD, PredictOptions, predict
from lampseg.commands.run_folder import check_writable
from lampseg.commands.train import train
from lampseg.config import Config, dump_config
from lampseg.data import Case, Dataset, dataset_of
from lampseg.errors import UserError
from lampseg.evaluation import evaluate
from lampseg.evaluation.scores import Evaluation
from lampseg.evaluation.tables import rich_table, write_text
from lampseg.experiments.cost import Cost, cost_of, cost_rows
from lampseg.experiments.definition import Experiment, Row, Study, study
from lampseg.experiments.page import write_page
from lampseg.experiments.results import Filled, Result, filled_tables
from lampseg.experiments.scale import SCALES, at_scale
from lampseg.experiments.selected_on_test import selected_on_test
from lampseg.experiments.standin import write_standin

ROUNDS = 3
"""Of timed inference, as in the paper."""


@dataclass(frozen=True)
class Options:
    """How a study is done."""

    only: tuple[str, ...] = ()
    """Experiments such as seunet-128; none: all."""
    scale: str = "full"
    devices: int | str | None = None
    seed: int = 0
    rounds: int = ROUNDS
    on_test: bool = False
    """Also fill the tables as the original code selects: for each organ the best weights on the test set."""
    overrides: Mapping[str, Any] | None = None
    """Further fields of every experiment's configuration, nested as in YAML."""


def reproduce(
    name: str, *, data: Path | None, out: Path, options: Options | None = None, dry_run: bool = False
) -> Path | None:
    """Plans, trains, predicts, times and evaluates every row, and fills the paper's tables.

    What is done is skipped, what was begun is continued: the same call again goes on where the last one was stopped.

    Args:
        name: han or liver.
        data: the dataset's folder; None: the phantom, which smaller scales may take, or, with `dry_run`, the sizes that
            the paper states.
        out: folder of the study: a folder for each experiment, the filled tables, and `report.html`.
        dry_run: only say what it will cost.

    Returns:
        The page; None of a dry run.

    Raises:
        UserError: no such study, experiment or scale; the data do not fit; a plan does not fit the devices.
        WorkerError: a process failed; the next call continues.
    """
    options = options or Options()
    if options.scale not in SCALES:
        raise UserError(f"--scale: {options.scale!r} is not known; choose {', '.join(SCALES)}")
    scale = SCALES[options.scale]
    chosen = at_scale(study(name), scale)
    experiments = chosen.chosen(options.only)
    console = Console()
    if data is None and scale is None and not dry_run:
        raise UserError(f"--data: give the folder of the {chosen.title} data; --dry-run says what it will cost without")
    if options.rounds < 1:
        raise UserError(f"--rounds: {options.rounds} is not a number above 0")
    dataset = None
    if not dry_run:
        check_writable(out, option="--out")
    if data is None and not dry_run:
        assert scale is not None
        data = out / "data"
        console.print(f"no --data: the phantom in {data} stands for it", markup=False, highlight=False)
        write_standin(name, data, cases=scale.cases, test=scale.test, seed=options.seed)
    configs = {experiment: _config(experiment, data, options, out=out) for experiment in experiments}
    if data is not None:
        dataset = dataset_of(next(iter(configs.values())).data)
        check_fits(chosen, dataset)
    left = {experiment: config for experiment, config in configs.items() if not _trained(experiment, out)}
    if left:
        _say_costs(left, data=dataset is not None, console=console, out=None if dry_run else out)
    if dry_run:
        return None
    assert dataset is not None
    for experiment, config in configs.items():
        _do(experiment, config, dataset, options, out=out, console=console)
        write_results(chosen, dataset, out, options)
    return write_results(chosen, dataset, out, options)


def check_fits(chosen: Study, dataset: Dataset) -> None:
    """Raises UserError if the data can't be the study's: no labelled test case, or none of its classes."""
    if not any(case.labelled for case in dataset.test):
        raise UserError(
            f"{dataset.root}: has no labelled test case to evaluate on; split some off by `data.test_cases`, see "
            "docs/reference/data-layout.md"
        )
    missing = [organ for organ in chosen.organs if organ not in dataset.classes]
    if missing:
        raise UserError(
            f"{dataset.root}: does not name the class {', '.join(missing)}, it has {', '.join(dataset.classes[1:])}; "
            f"the study {chosen.name} is on {chosen.title}"
        )


def _config(experiment: Experiment, data: Path | None, options: Options, *, out: Path) -> Config:
    """What the experiment is trained with; preprocessed volumes are shared by all experiments."""
    more: dict[str, Any] = dict(options.overrides or {})
    more["data"] = {"cache": str(out / "preprocessed"), **more.get("data", {})}
    if options.scale != "full":
        more["data"] = {"test_cases": None, **more["data"]}  # the phantom has a test set
    if options.on_test:
        more["validation"] = {"keep": True, **more.get("validation", {})}
    root = str(data) if data is not None else "."
    return experiment.config(root=root, devices=options.devices, seed=options.seed, overrides=more)


def _say_costs(configs: Mapping[Experiment, Config], *, data: bool, console: Console, out: Path | None) -> None:
    with console.status("planning"):
        costs: list[Cost] = [cost_of(experiment, config, data=data) for experiment, config in configs.items()]
    header, rows, total = cost_rows(costs)
    title = f"what it will cost on {costs[0].devices} device(s), by the plan: training, without validation"
    console.print(rich_table(header, rows, footer=[total], title=title))
    if out is not None:
        tree = [
            {"experiment": c.experiment.name, "devices": c.devices, "steps": c.steps, "seconds": c.seconds}
            for c in costs
        ]
        write_text(out / "cost.json", json.dumps(tree, indent=1))


def _do(
    experiment: Experiment, config: Config, dataset: Dataset, options: Options, *, out: Path, console: Console
) -> None:
    folder = out / experiment.name
    run = folder / "run"
    console.rule(f"{experiment.paper_name}: training")
    if _trained(experiment, out):
        console.print(f"{run}: done before", markup=False, highlight=False)
    else:
        write_text(folder / "config.yaml", dump_config(config))
        train(config, run=run, resume=(run / "config.yaml").is_file())
    tested = [case for case in dataset.test if case.labelled]
    for row in experiment.rows:
        console.rule(f"{row.experiment.paper_name}, input {row.input.name}: test images")
        _test(row, tested, dataset, options, run=run, folder=folder / row.input.name)
    if options.on_test:
        console.rule(f"{experiment.paper_name}: every validated model on the test images")
        selected_on_test(experiment, tested, dataset, run=run, folder=folder, devices=options.devices)


def _trained(experiment: Experiment, out: Path) -> bool:
    run = out / experiment.name / "run"
    last = run / "checkpoints" / f"stage-{len(experiment.rows)}.safetensors"
    return last.is_file() and (run / "report.html").is_file()


def _test(row: Row, cases: Sequence[Case], dataset: Dataset, options: Options, *, run: Path, folder: Path) -> None:
    """Predictions, scores and seconds of one row, as far as they are not there."""
    images = [case.image for case in cases]
    study = row.experiment.study
    predicted = folder / "predictions"
    if not (predicted / RECORD).is_file():
        given = predict_options(row, row.input.window)
        predict(run, images, out=predicted, devices=options.devices, options=given)
    if not (folder / "evaluation.json").is_file():
        evaluate(predicted, dataset, out=folder)
    timed = folder / "seconds.json"
    if timed.is_file() and len(json.loads(timed.read_text())["rounds"]) >= options.rounds:
        return
    same = row.input.timed == row.input.window
    rounds = [_seconds(predicted)] if same else []
    while len(rounds) < options.rounds:
        again = folder / "timing"
        given = predict_options(row, row.input.timed)
        predict(run, images, out=again, devices=options.devices, options=given)
        rounds.append(_seconds(again))
        shutil.rmtree(again)
    window = row.input.timed
    write_text(timed, json.dumps({"window": window, "overlap": study.overlap, "rounds": rounds}))


def predict_options(row: Row, window: int | str) -> PredictOptions:
    """How the row's test images are segmented."""
    if isinstance(window, str):
        return PredictOptions(row.checkpoint)
    return PredictOptions(row.checkpoint, (window,) * 3, row.experiment.study.overlap)


def _seconds(predictions: Path) -> list[float]:
    tree = json.loads((predictions / RECORD).read_text(encoding="utf-8"))
    return [float(item["seconds"]) for item in tree["predictions"]]


def mean_seconds(rounds: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """Mean of each round; the first image, which warms the processes up, is left out if there are more."""
    return tuple(sum(images[1:] or images) / len(images[1:] or images) for images in rounds)


def read_result(row: Row, folder: Path) -> Result:
    """What there is of a row so far."""
    evaluation, seconds = folder / "evaluation.json", folder / "seconds.json"
    found = None
    if evaluation.is_file():
        found = Evaluation.from_json(evaluation.read_text(encoding="utf-8"), source=str(evaluation))
    rounds = json.loads(seconds.read_text(encoding="utf-8"))["rounds"] if seconds.is_file() else []
    return Result(row, found, mean_seconds(rounds))


def write_results(chosen: Study, dataset: Dataset, out: Path, options: Options) -> Path:
    """Fills the tables with all that is there, also of earlier calls.

    Returns:
        The page.
    """
    results = [
        read_result(row, out / experiment.name / row.input.name)
        for experiment in chosen.experiments
        for row in experiment.rows
    ]
    tables = filled_tables(chosen, results)
    for table in tables:
        write_text(out / f"{table.name}.csv", table.to_csv())
    on_test: tuple[Filled, ...] = ()
    if options.on_test:
        best = [read_result(row, out / row.experiment.name / "on-test" / row.input.name) for row in _rows(chosen)]
        on_test = filled_tables(chosen, best)[:-1]
        for table in on_test:
            write_text(out / f"{table.name}-selected-on-test.csv", table.to_csv())
    return write_page(chosen, dataset, results, tables, on_test=on_test, out=out, scale=options.scale)


def _rows(chosen: Study) -> list[Row]:
    return [row for experiment in chosen.experiments for row in experiment.rows]

"""The command `lampseg`: parses the verbs and their options, and turns errors into messages and exit codes."""

import difflib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from lampseg.errors import UserError
from lampseg.version import __version__

INTERRUPTED = 130


@dataclass(frozen=True)
class Plan:
    """Say what fits and how the network is split, before anything runs.

    Any field of the configuration can be set by its dotted name, with a value as in YAML:
    --network.filters 64 --curriculum.0.patch "[64, 64, 32]"
    """

    config: tyro.conf.Positional[Path]
    """YAML file."""
    devices: Annotated[str | None, tyro.conf.arg(metavar="N[xMEMORY]")] = None
    """How many, with the memory of each if wanted: 4, 4x16GiB. They need not exist here."""
    json: bool = False
    """Print the plans as JSON."""
    shape: Annotated[tuple[int, int, int] | None, tyro.conf.arg(metavar="X Y Z")] = None
    """Largest volume in voxels, to plan without data."""
    classes: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Number of classes with the background, to plan without data."""
    largest_patch: bool = False
    """Instead: the largest patch that fits the devices, with the last curriculum stage's batch."""
    fewest_devices: Annotated[str | None, tyro.conf.arg(metavar="MEMORY")] = None
    """Instead: the fewest devices of so much memory each (such as 16GiB) on which the last curriculum stage fits."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.plan import plan_fewest_devices, plan_largest_patch, subject_of
        from lampseg.config import load_config
        from lampseg.partition import Plan as PlanValue
        from lampseg.partition import plans_to_json
        from lampseg.partition.show import show_plan
        from lampseg.training.plans import make_plans

        if self.largest_patch and self.fewest_devices is not None:
            raise UserError("--largest-patch and --fewest-devices are two questions: ask one at a time")
        config = load_config(self.config, overrides=_with_devices(overrides, self.devices))
        errors = Console(stderr=True)
        with errors.status("planning"):
            subject = subject_of(config, shape=self.shape, classes=self.classes)
            plans: tuple[PlanValue, ...]
            if self.largest_patch:
                size, made = plan_largest_patch(subject)
                titles, plans = [f"the largest patch that fits: {list(size)}"], (made,)
            elif self.fewest_devices is not None:
                made = plan_fewest_devices(subject, memory=self.fewest_devices)
                titles, plans = [f"the fewest devices of {self.fewest_devices}: {made.choices.processes}"], (made,)
            else:
                plans = make_plans(subject)
                titles = [
                    f"curriculum stage {number}: patch {stage.patch}, batch {stage.batch}"
                    for number, stage in enumerate(config.curriculum, start=1)
                ]
        if self.json:
            sys.stdout.write(plans_to_json(plans) + "\n")
            sys.stdout.flush()
            return
        console = Console()
        for title, made in zip(titles, plans, strict=True):
            console.rule(title, align="left")
            console.print(show_plan(made), highlight=False)


@dataclass(frozen=True)
class Train:
    """Train a network by the curriculum, split over the devices.

    Any field of the configuration can be set by its dotted name, with a value as in YAML:
    --network.filters 64 --curriculum.0.patch "[64, 64, 32]"
    """

    config: tyro.conf.Positional[Path]
    """YAML file."""
    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """Folder of the run: configuration, plan, metrics, checkpoints, report."""
    devices: Annotated[str | None, tyro.conf.arg(metavar="N[xMEMORY]")] = None
    """How many processes (CUDA if present, else CPU): 2, or 2x16GiB to state the memory of each."""
    resume: bool = False
    """Continue at the last checkpoint, also on another number of devices."""
    plan: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Plans to use instead of the planner's: a file of `lampseg plan --json`, perhaps edited."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.train import train
        from lampseg.config import load_config

        config = load_config(self.config, overrides=_with_devices(overrides, self.devices))
        train(config, run=self.run_folder, resume=self.resume, plan=self.plan)


@dataclass(frozen=True)
class Predict:
    """Segment images with the model of a run; each result lies on its image's own grid."""

    run_folder: Annotated[Path, tyro.conf.arg(name="run")]
    """Folder of the run."""
    out: Path
    """Folder for the results."""
    images: tyro.conf.Positional[tuple[Path, ...]]
    """NIfTI files, or folders of them."""
    devices: Annotated[str | None, tyro.conf.arg(metavar="N[xMEMORY]")] = None
    """As in train; without it as the run was trained."""
    checkpoint: str = "best"
    """best, last, stage-N, or a safetensors file."""
    window: Annotated[tuple[int, ...] | None, tyro.conf.arg(metavar="N [N N]")] = None
    """Sliding window in voxels, one number or three; without it the whole volume in one pass."""
    overlap: float = 0.25
    """Of sliding windows, as a fraction."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.predict import PredictOptions, predict

        _no_overrides(overrides)
        options = PredictOptions(self.checkpoint, _three(self.window), self.overlap)
        predict(self.run_folder, self.images, out=self.out, devices=self.devices, options=options)


@dataclass(frozen=True)
class Evaluate:
    """Dice per class of predictions against labels; cases without an annotation are left out of its mean."""

    predictions: Path
    """Folder of label files."""
    labels: Path
    """Folder of the true label files (its parent's dataset.json names the classes), or a dataset's root."""
    out: Path
    """Folder for evaluation.json and evaluation.csv."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.evaluation import evaluate

        _no_overrides(overrides)
        found = evaluate(self.predictions, self.labels, out=self.out)
        Console().print(found.table())


@dataclass(frozen=True)
class Calibrate:
    """Measure this machine once, in about a minute, so that plans know its speed; see docs/how-to/calibrate.md."""

    devices: Annotated[str | None, tyro.conf.arg(metavar="N")] = None
    """How many processes measure at the same time, as in train."""
    precision: tuple[Literal["float32", "bfloat16", "float64"], ...] = ()
    """What to measure beside float32; without it, on CUDA, bfloat16."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File; without it LAMPSEG_HARDWARE, or lampseg/hardware.json in the cache folder, where plans look for it."""
    quick: bool = False
    """A few tiny sizes, to see that it works; the figures are not to be trusted."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.calibrate import calibrate

        _no_overrides(overrides)
        calibrate(devices=self.devices, precisions=self.precision, out=self.out, quick=self.quick)


@dataclass(frozen=True)
class Benchmark:
    """Run a benchmark of the checkout that lampseg was installed from; without a name, list them."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[NAME]")] = None
    """Which, such as plan_accuracy."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for the results; without it they replace the recorded ones in the checkout."""
    quick: bool = False
    """Tiny sizes and few cases, to see that it works; needs --out."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.benchmark import benchmark, benchmarks

        _no_overrides(overrides)
        if self.name is None:
            for name, claim in benchmarks().items():
                Console().print(f"{name}: {claim}", highlight=False, markup=False, soft_wrap=True)
            return
        benchmark(self.name, out=self.out, quick=self.quick)


@dataclass(frozen=True)
class DemoData:
    """Write the phantom: head-and-neck-like CT volumes with nine organs, in the MSD layout."""

    out: Path
    """Folder to be made."""
    cases: int = 24
    """Training cases."""
    test: int = 6
    """Test cases, with labels."""
    seed: int = 0
    spacing: float = 4.0
    """Of the voxels, in mm."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.data import write_phantom

        _no_overrides(overrides)
        dataset = write_phantom(self.out, cases=self.cases, seed=self.seed, test=self.test, spacing=self.spacing)
        text = f"{self.out}: {len(dataset.training)} training and {len(dataset.test)} test cases"
        Console().print(text, highlight=False)


@dataclass(frozen=True)
class Demo:
    """The main job on the phantom: plan, curriculum on two processes, whole volumes against sliding windows."""

    out: Path = Path("demo")
    """Folder to be made."""
    devices: str = "2"
    """As in train."""
    scale: Literal["full", "tiny"] = "full"
    """full: about 5 minutes on 2 cores; tiny: a minute, to see that everything works."""

    def run(self, overrides: dict[str, str]) -> None:
        from lampseg.commands.demo import demo

        _no_overrides(overrides)
        demo(self.out, devices=self.devices, scale=self.scale)


DESCRIPTION = (
    "Train and run 3D segmentation networks split over devices. `lampseg VERB --help` explains a verb. "
    "Exit codes: 0 done, 1 failed, 2 something to correct (the message says what), 130 interrupted."
)
Verb = Plan | Train | Predict | Evaluate | Calibrate | Benchmark | DemoData | Demo


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs one verb. Exit codes: 0 done, 1 failed, 2 the user can mend it, 130 interrupted."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["--version"]:
        sys.stdout.write(f"lampseg {__version__}\n")
        return
    _check_verb(arguments)
    options, fields = split_overrides(arguments)
    verb, rest = tyro.cli(
        Verb,
        prog="lampseg",
        description=DESCRIPTION,
        args=options,
        return_unknown_args=True,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    from lampseg.parallel.launch import WorkerError, is_worker, run_worker

    console = Console(stderr=True)
    try:
        overrides = parse_overrides([*fields, *rest])
        if is_worker():
            run_worker(lambda: verb.run(overrides))
        else:
            verb.run(overrides)
    except UserError as error:
        console.print(f"lampseg: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except WorkerError as error:
        console.print(f"lampseg: {error}", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except BrokenPipeError:  # who reads our output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains when it closes it
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes the fields of the configuration out of the arguments of `plan` and `train`: (options, overrides).

    They may stand anywhere, also before the configuration file, which would else be taken for their value.
    """
    if list(arguments[:1]) not in (["plan"], ["train"]):
        return list(arguments), []
    from lampseg.config import Config

    options: list[str] = []
    fields: list[str] = []
    items = iter(arguments)
    for item in items:
        found = re.fullmatch(r"(--)?([A-Za-z_][\w-]*)((?:\.[\w-]+)*)(=.*)?", item, re.DOTALL)
        field = found is not None and (found[3] or found[2] in Config.model_fields)
        if found is None or not field or not (found[1] or found[4]):
            options.append(item)
            continue
        fields.append(item)
        if not found[4] and (following := next(items, None)) is not None:
            fields.append(following)
    return options, fields


def parse_overrides(rest: Sequence[str]) -> dict[str, str]:
    """`--a.b value`, `--a.b=value` and `a.b=value` -> {"a.b": "value"}.

    Raises:
        UserError: something else.
    """
    overrides: dict[str, str] = {}
    items = iter(rest)
    for item in items:
        name, equals, value = item.partition("=")
        if not equals:
            if not item.startswith("--"):
                raise UserError(f"`{item}` is not understood here; `lampseg VERB --help` lists the options")
            following = next(items, None)
            if following is None or following.startswith("--"):
                raise UserError(
                    f"`{item}` is no option of this verb, and as a field of the configuration it needs a value; "
                    "`lampseg VERB --help` lists the options"
                )
            value = following
        overrides[name.removeprefix("--").replace("-", "_")] = value
    return overrides


def _check_verb(arguments: Sequence[str]) -> None:
    """Names a misspelt verb; tyro would only say that one is missing."""
    verbs = ("plan", "train", "predict", "evaluate", "calibrate", "benchmark", "demo-data", "demo")
    if arguments and not arguments[0].startswith("-") and arguments[0] not in verbs:
        near = difflib.get_close_matches(arguments[0], verbs, n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"the verbs are {', '.join(verbs)}"
        Console(stderr=True).print(f"lampseg: unknown verb `{arguments[0]}`: {hint}", markup=False, highlight=False)
        sys.exit(2)


def _with_devices(overrides: dict[str, str], devices: str | None) -> dict[str, str]:
    if devices is None:
        return overrides
    if not devices.strip():
        raise UserError("--devices: is empty; give a number such as 2, or leave it out")
    return overrides | {"parallel.devices": devices}


def _no_overrides(overrides: dict[str, str]) -> None:
    if overrides:
        raise UserError(f"unknown option --{next(iter(overrides))}; `lampseg VERB --help` lists the options")


def _three(window: tuple[int, ...] | None) -> tuple[int, int, int] | None:
    if window is None:
        return None
    if len(window) not in (1, 3) or min(window) < 1:
        raise UserError(f"--window: {list(window)} is not one size above 0 or three, in voxels")
    x, y, z = window * 3 if len(window) == 1 else window
    return x, y, z

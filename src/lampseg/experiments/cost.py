"""What a study will cost before it begins: steps, seconds a step by the plan, device-hours."""

from collections.abc import Sequence
from dataclasses import dataclass

from lampseg.commands.plan import subject_of
from lampseg.config import Config
from lampseg.data import dataset_of, split_training
from lampseg.experiments.definition import Experiment
from lampseg.training.plans import make_plans


@dataclass(frozen=True)
class Cost:
    """Of training one experiment, by the plan."""

    experiment: Experiment
    devices: int
    steps: tuple[int, ...]
    """Of each curriculum stage."""
    seconds: tuple[float, ...]
    """For one step of each curriculum stage."""
    peak_bytes: float
    """Of the fullest device, in the stage that needs most."""

    @property
    def device_hours(self) -> float:
        return self.devices * self.hours

    @property
    def hours(self) -> float:
        """On the clock, without validation."""
        return sum(steps * seconds for steps, seconds in zip(self.steps, self.seconds)) / 3600


def cost_of(experiment: Experiment, config: Config, *, data: bool = True) -> Cost:
    """Plans every curriculum stage, from the headers of the data alone.

    Args:
        data: they are there; else as many cases are counted, and as large a volume is planned for, as the paper states.

    Raises:
        UserError: a stage does not fit the devices, or the data do not fit the configuration.
    """
    study = experiment.study
    if data:
        dataset = dataset_of(config.data)
        training, _ = split_training(dataset, fraction=config.data.validation, seed=config.seed)
        cases, subject = len(training), subject_of(config)
    else:
        cases = round(study.cases * (1 - config.data.validation))
        subject = subject_of(config, shape=study.largest, classes=1 + len(study.organs))
    plans = make_plans(subject)
    steps = []
    for stage in config.curriculum:
        each = -(-cases // stage.batch)
        steps.append(stage.steps if stage.steps is not None else (stage.epochs or 0) * each)
    return Cost(
        experiment,
        subject.devices.count,
        tuple(steps),
        tuple(plan.step_seconds for plan in plans),
        max(plan.peak_bytes for plan in plans),
    )


def cost_rows(costs: Sequence[Cost]) -> tuple[list[str], list[list[str]], list[str]]:
    """Header, a row for each experiment, and the sum."""
    header = ["experiment", "steps", "s a step", "fullest device", "hours", "device-hours"]
    rows = [
        [
            cost.experiment.paper_name,
            " + ".join(str(count) for count in cost.steps),
            " / ".join(f"{seconds:.2g}" for seconds in cost.seconds),
            f"{cost.peak_bytes / 2**30:.2f} GiB",
            f"{cost.hours:.2f}",
            f"{cost.device_hours:.2f}",
        ]
        for cost in costs
    ]
    total = ["all", "", "", "", f"{sum(c.hours for c in costs):.2f}", f"{sum(c.device_hours for c in costs):.2f}"]
    return header, rows, total

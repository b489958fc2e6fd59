"""The Plan: which stage runs which operations, on what terms. A frozen, versioned, printable, editable JSON value."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lampseg.errors import UserError
from lampseg.partition.cost import Recompute, Schedule

VERSION = 1


@dataclass(frozen=True)
class Stage:
    """One device's share of the network."""

    index: int
    first: int
    """Number of its first operation."""
    last: int
    """Number after its last operation."""
    begins: str
    """Its first operation that computes, in words: `function @ module`."""
    modules: tuple[str, ...]
    """The modules whose operations it runs, in order."""
    parameters: int
    parameter_bytes: int
    """Parameters and buffers."""
    gradient_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """Kept for backward, for one micro-batch."""
    in_flight: int
    """Micro-batches between forward and backward, at most."""
    receive_bytes: int
    """Received from earlier stages for one micro-batch's forward (backward returns as much)."""
    send_bytes: int
    peak_bytes: int
    flops: float
    """Forward and backward of one micro-batch."""
    time_share: float
    """Predicted share of the stages' summed time; the slowest stage sets the pace."""


@dataclass(frozen=True)
class Plan:
    """How one network runs on one input shape."""

    network: str
    input_shape: tuple[int, ...]
    """Of one micro-batch, (N, C, *spatial)."""
    micro_batches: int
    schedule: Schedule
    recompute: Recompute
    precision: str
    operations: int
    digest: str
    """Of the sequence of operations: a plan is for one network."""
    stages: tuple[Stage, ...]
    version: int = VERSION

    @property
    def cuts(self) -> tuple[int, ...]:
        """The operations at which stages 1, 2, ... begin."""
        return tuple(stage.first for stage in self.stages[1:])

    @property
    def bubble(self) -> float:
        """Fraction of the devices' time in which they wait, from the schedule and the stages' shares."""
        slowest = max(stage.time_share for stage in self.stages)
        span = slowest * (self.micro_batches - 1) + 1.0
        return 1.0 - self.micro_batches / (len(self.stages) * span)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"cuts": list(self.cuts), "bubble": self.bubble}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=1)

    @staticmethod
    def from_dict(tree: dict[str, Any]) -> "Plan":
        """Reads what `to_dict` wrote.

        Raises:
            UserError: another version, or a missing or unknown field.
        """
        if tree.get("version") != VERSION:
            raise UserError(f"plan: version {tree.get('version')!r} is not {VERSION}: make the plan again")
        derived = {"cuts", "bubble"}
        try:
            stages = tuple(Stage(**{**stage, "modules": tuple(stage["modules"])}) for stage in tree["stages"])
            rest = {k: v for k, v in tree.items() if k not in derived | {"stages"}}
            return Plan(**{**rest, "input_shape": tuple(rest["input_shape"]), "stages": stages})
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"plan: not a plan of version {VERSION}: {error}") from error

    def table(self) -> Table:
        """The stages as a table for the terminal; it fits 80 columns."""
        table = Table(title=self.headline(), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("dev", justify="right")
        table.add_column("begins with", overflow="fold")
        for name in ("weights", "memory", "activations", "receives", "time"):
            table.add_column(name, justify="right", no_wrap=True)
        for stage in self.stages:
            table.add_row(
                str(stage.index),
                stage.begins,
                format_count(stage.parameters),
                format_bytes(stage.peak_bytes),
                f"{stage.in_flight}x{format_bytes(stage.activation_bytes)}",
                format_bytes(stage.receive_bytes),
                f"{stage.time_share:.0%}",
            )
        return table

    def headline(self) -> str:
        shape = "x".join(str(size) for size in self.input_shape)
        return (
            f"{self.network} on {shape}: {len(self.stages)} stage(s), {self.micro_batches} micro-batch(es), "
            f"{self.schedule}, recompute {self.recompute}, {self.precision}; devices idle {self.bubble:.0%}"
        )


def plans_to_json(plans: Sequence[Plan]) -> str:
    """The content of a run's `plan.json`: one plan per curriculum stage."""
    return json.dumps({"version": VERSION, "plans": [plan.to_dict() for plan in plans]}, indent=1)


def plans_from_json(text: str) -> tuple[Plan, ...]:
    """Reads `plans_to_json`'s text.

    Raises:
        UserError: not JSON, or not such plans.
    """
    try:
        tree = json.loads(text)
        return tuple(Plan.from_dict(plan) for plan in tree["plans"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"plan.json: not a list of plans: {error}") from error


def format_bytes(count: float) -> str:
    """Bytes for people: 1.50 GiB."""
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def format_count(count: int) -> str:
    """A number of parameters for people: 22.9M."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return str(count)

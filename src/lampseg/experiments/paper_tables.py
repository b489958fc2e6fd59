"""The paper's own figures, from the tables as published."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

from lampseg.experiments.definition import Study

Key = tuple[str, str]
"""Model and input, as printed."""


@dataclass(frozen=True)
class Seconds:
    """Of one test image: mean and standard deviation over three rounds, and the devices if the paper names them."""

    mean: float
    deviation: float
    devices: str


def paper_dice(study: Study, *, only: str | None = None) -> dict[Key, Mapping[str, float]]:
    """Dice in percent: (model, input) -> column in small letters -> value; `average` is a column, too.

    AnatomyNet's row, which the paper quotes, has no input.

    Args:
        only: one table's file; None: all of the study.
    """
    found: dict[Key, Mapping[str, float]] = {}
    for name in study.dice_tables if only is None else (only,):
        for row in _rows(name):
            values = {column.lower(): value for column, value in row.items() if column not in ("model", "input")}
            found[row["model"], row["input"]] = {column: float(value) for column, value in values.items()}
    return found


def paper_seconds(study: Study) -> dict[Key, Seconds]:
    """(model, input) -> seconds for one test image."""
    return {
        (row["model"], row["input"]): Seconds(float(row["seconds_mean"]), float(row["seconds_std"]), row["devices"])
        for row in _rows(study.seconds_table)
    }


def _rows(name: str) -> list[dict[str, str]]:
    text = resources.files("lampseg.experiments").joinpath("paper", name).read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))

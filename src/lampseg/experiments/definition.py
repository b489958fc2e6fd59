"""The paper's experiments as values: a study of one dataset, its experiments (one network each) and their rows."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

import yaml

from lampseg.config import Config, parse_config
from lampseg.errors import UserError

STUDIES = ("han", "liver")
WHOLE = "whole"


@dataclass(frozen=True, eq=False)
class Input:
    """One size of the network's input: a curriculum stage, and a row of the tables for each network."""

    name: str
    """As in the paper's tables: 64, 128, 192 or whole."""
    stage: Mapping[str, Any]
    """The `curriculum` entry."""
    window: int | str
    """Edge of the windows, in voxels, in which test images are segmented; or whole."""
    timed: int | str
    """The same for the table of seconds."""
    timed_as: str
    """What the paper calls it in that table."""


@dataclass(frozen=True, eq=False)
class Study:
    """All experiments on one dataset."""

    name: str
    title: str
    networks: Mapping[str, str]
    """Name in the configuration -> name in the paper."""
    filters: tuple[int, ...]
    inputs: tuple[Input, ...]
    organs: Mapping[str, str]
    """Class -> column of the paper's table of Dice."""
    cases: int
    """Training cases of the paper."""
    largest: tuple[int, int, int]
    """Voxels of the paper's largest volume."""
    overlap: float
    dice_tables: tuple[str, ...]
    seconds_table: str
    config: Mapping[str, Any]
    """Fields that all experiments share."""
    raw: Mapping[str, Any]
    """Fields that data need in another layout than the one that the paper used."""
    options: Mapping[str, Any]
    """Of all networks, beside name and filters."""
    wide: Mapping[int, int]
    """Filters in the paper -> filters here; the same but at a smaller scale."""

    @property
    def experiments(self) -> tuple["Experiment", ...]:
        """One for each network and number of filters, in the order of the paper's tables."""
        return tuple(Experiment(self, network, count) for network in self.networks for count in self.filters)

    def chosen(self, only: tuple[str, ...]) -> tuple["Experiment", ...]:
        """Those named, such as `seunet-128`; all without a name.

        Raises:
            UserError: there is no such experiment.
        """
        known = {experiment.name: experiment for experiment in self.experiments}
        unknown = [name for name in only if name not in known]
        if unknown:
            raise UserError(f"--only: {unknown[0]!r} is no experiment of {self.name}; there are {', '.join(known)}")
        return tuple(known[name] for name in known if not only or name in only)


@dataclass(frozen=True)
class Experiment:
    """One network, trained through the whole curriculum."""

    study: Study
    network: str
    filters: int
    """As in the paper."""

    @property
    def name(self) -> str:
        return f"{self.network}-{self.filters}"

    @property
    def paper_name(self) -> str:
        """As in the paper's tables: U-Net-32."""
        return f"{self.study.networks[self.network]}-{self.filters}"

    @property
    def rows(self) -> tuple["Row", ...]:
        return tuple(Row(self, stage, given) for stage, given in enumerate(self.study.inputs))

    def config(
        self, *, root: str, devices: int | str | None, seed: int, overrides: Mapping[str, Any], raw: bool = False
    ) -> Config:
        """What `train` is given.

        Args:
            root: of the dataset.
            raw: the data are not in the layout that the paper used.
            overrides: further fields, nested as in the YAML file.

        Raises:
            UserError: an override has no such field, or a bad value.
        """
        study = self.study
        tree: dict[str, Any] = {
            "network": {"name": self.network, "filters": study.wide[self.filters], **study.options},
            "data": {"root": root},
            "curriculum": [dict(given.stage) for given in study.inputs],
            "parallel": {"devices": devices},
            "seed": seed,
        }
        tree = _merged(_merged(tree, study.config), study.raw if raw else {})
        return parse_config(_merged(tree, overrides), source=f"{study.name} {self.name}")


@dataclass(frozen=True)
class Row:
    """A row of the paper's tables: a network after the curriculum stages up to an input size."""

    experiment: Experiment
    stage: int
    input: Input

    @property
    def name(self) -> str:
        return f"{self.experiment.name}/{self.input.name}"

    @property
    def key(self) -> tuple[str, str]:
        """Of the paper's table of Dice: model and input."""
        return self.experiment.paper_name, self.input.name

    @property
    def seconds_key(self) -> tuple[str, str]:
        """Of the paper's table of seconds. The liver's is timed with another size than it was trained with."""
        return self.experiment.paper_name, self.input.timed_as

    @property
    def checkpoint(self) -> str:
        """The model of this row: the best of its curriculum stage on the validation split."""
        return f"stage-{self.stage + 1}-best"


@cache
def study(name: str) -> Study:
    """The study `han` or `liver`, at the paper's scale.

    Raises:
        UserError: there is no such study.
    """
    if name not in STUDIES:
        raise UserError(f"{name!r} is no study of the paper; there are {' and '.join(STUDIES)}")
    tree = yaml.safe_load(resources.files("lampseg.experiments").joinpath(f"{name}.yaml").read_text(encoding="utf-8"))
    filters = tuple(tree["filters"])
    return Study(
        name=name,
        title=tree["title"],
        networks=tree["networks"],
        filters=filters,
        inputs=tuple(Input(**given) for given in tree["inputs"]),
        organs=tree["organs"],
        cases=int(tree["data"]["training"]),
        largest=tuple(tree["data"]["largest"]),
        overlap=float(tree["overlap"]),
        dice_tables=tuple(tree["tables"]["dice"]),
        seconds_table=tree["tables"]["seconds"],
        config=tree["config"],
        raw=tree.get("raw", {}),
        options={},
        wide={count: count for count in filters},
    )


def scaled(given: Study, *, filters: Mapping[int, int], inputs: tuple[Input, ...], options: Mapping[str, Any]) -> Study:
    """The same study with smaller networks and inputs, under the paper's names."""
    return replace(given, wide=filters, inputs=inputs, options=options)


def _merged(tree: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(tree)
    for key, value in more.items():
        inner = out.get(key)
        out[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return out

"""How large a study is done: the paper's scale, or the very same path in small on the phantom."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lampseg.experiments.definition import WHOLE, Study, scaled


@dataclass(frozen=True)
class Scale:
    """What stands for the paper's sizes."""

    filters: Mapping[int, int]
    edges: Mapping[int, int]
    """Patches and windows: the paper's edge -> this one."""
    batch: Mapping[str, int]
    """By the input's name."""
    steps: Mapping[str, int]
    """In place of epochs, by the input's name."""
    options: Mapping[str, Any]
    """Of the networks."""
    cases: int
    """Training cases of the phantom that stands for the data, if none are given."""
    test: int


_EDGES = {64: 16, 128: 32, 192: 48, 256: 56}
_BATCH = {"64": 8, "128": 4, "192": 1, WHOLE: 1}
SCALES: Mapping[str, Scale | None] = {
    "full": None,
    "tiny": Scale(
        filters={32: 4, 64: 8, 128: 16},
        edges=_EDGES,
        batch=_BATCH,
        steps={"64": 60, "128": 30, "192": 15, WHOLE: 15},
        options={"norm": "instance", "depth": 2},
        cases=8,
        test=3,
    ),
    # runs/phantom_study.sh: enough to learn the larger organs.
    "study": Scale(
        filters={32: 8, 64: 16, 128: 32},
        edges=_EDGES,
        batch={"64": 16, "128": 8, "192": 2, WHOLE: 2},
        steps={"64": 300, "128": 150, "192": 50, WHOLE: 50},
        options={"norm": "instance", "depth": 2},
        cases=24,
        test=12,
    ),
    "smoke": Scale(
        filters={32: 2, 64: 3, 128: 4},
        edges=_EDGES,
        batch=_BATCH,
        steps={"64": 2, "128": 2, "192": 2, WHOLE: 2},
        options={"norm": "instance", "depth": 2},
        cases=3,
        test=2,
    ),
}


def at_scale(study: Study, scale: Scale | None) -> Study:
    """The study with every size replaced; None leaves the paper's."""
    if scale is None:
        return study

    def edge(size: int | str) -> int | str:
        return size if isinstance(size, str) else scale.edges[size]

    inputs = []
    for given in study.inputs:
        stage = {key: value for key, value in given.stage.items() if key != "epochs"}
        stage |= {"patch": edge(stage["patch"]), "batch": scale.batch[given.name], "steps": scale.steps[given.name]}
        inputs.append(replace(given, stage=stage, window=edge(given.window), timed=edge(given.timed)))
    return scaled(study, filters=scale.filters, inputs=tuple(inputs), options=scale.options)

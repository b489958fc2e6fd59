"""All metrics of one case: two label maps -> a value per class and metric, with what was there and what was not."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from lampseg.evaluation.metrics.measures import METRICS
from lampseg.evaluation.metrics.surfaces import surface_dice, voxel_distances

Presence = Literal["both", "truth only", "prediction only", "neither", "not annotated"]
PRESENCES: tuple[Presence, ...] = get_args(Presence)
Box = tuple[slice, ...]


@dataclass(frozen=True)
class ClassScores:
    """One class of one case."""

    presence: Presence
    """In which of the two maps the class has voxels; `not annotated`: its truth is unknown."""
    values: Mapping[str, float | None]
    """By the metric's name; None: excluded, or not defined here."""
    truth_ml: float | None
    """Volume; None if not annotated."""
    predicted_ml: float

    def undefined(self, metric: str) -> bool:
        """Whether there was something to score, but this metric has no value for it: no distance to nothing."""
        return self.presence in ("both", "truth only", "prediction only") and self.values[metric] is None

    def to_tree(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "presence": self.presence,
            "truth_ml": self.truth_ml,
            "predicted_ml": self.predicted_ml,
            **self.values,
        }

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> "ClassScores":
        """What `to_tree` gave. Raises KeyError, TypeError or ValueError if it is not such."""
        presence = tree["presence"]
        if presence not in PRESENCES:
            raise ValueError(f"presence {presence!r}")
        values = {name: None if tree[name] is None else float(tree[name]) for name in METRICS if name in tree}
        truth = tree["truth_ml"]
        return cls(presence, values, None if truth is None else float(truth), float(tree["predicted_ml"]))


def score_case(
    prediction: NDArray[np.integer],
    truth: NDArray[np.integer],
    *,
    classes: int,
    spacing: Sequence[float],
    metrics: Collection[str] = tuple(METRICS),
    tolerance_mm: Sequence[float] = (),
    annotated: Collection[int] | None = None,
) -> tuple[ClassScores, ...]:
    """Metrics of every foreground class of one case (docs/reference/evaluation.md has formulas and rules).

    In short: a class that is not annotated, or in neither map, has no value at all. One that is in one map only has
    Dice, Jaccard and surface Dice 0, but no HD95 and no ASSD: there is no distance to a surface that is not there.

    Args:
        prediction: integer labels (X, Y, Z).
        truth: integer labels of the same shape.
        classes: number of classes, background (0) included.
        spacing: mm per voxel along each axis.
        metrics: names from `METRICS`.
        tolerance_mm: of the surface Dice, for each foreground class; needed for `nsd` only.
        annotated: the foreground classes drawn in this case; None: all of them.

    Returns:
        `classes - 1` values: that of class 1 first.
    """
    assert prediction.shape == truth.shape, f"shapes differ: {prediction.shape} and {truth.shape}"
    assert prediction.ndim == len(spacing) == 3
    assert set(metrics) <= set(METRICS), f"unknown metrics: {metrics}"
    assert "nsd" not in metrics or len(tolerance_mm) == classes - 1, "one tolerance per foreground class"
    drawn = set(range(1, classes)) if annotated is None else set(annotated)
    boxes = [find_objects(labels, max_label=classes - 1) for labels in (prediction, truth)]
    found = []
    for value, pair in enumerate(zip(*boxes), start=1):
        box = _joint(pair)
        # Outside its box a class has no voxels, and nothing to do with its surface: masks are padded with background.
        masks = (np.ascontiguousarray(labels[box] == value) for labels in (prediction, truth))
        tolerance = tolerance_mm[value - 1] if "nsd" in metrics else 0.0
        found.append(_score(*masks, drawn=value in drawn, spacing=spacing, metrics=metrics, tolerance=tolerance))
    return tuple(found)


def _joint(boxes: Sequence[Box | None]) -> Box:
    """The smallest box around both; an empty one if the class is nowhere."""
    there = [box for box in boxes if box is not None]
    if not there:
        return (slice(0, 0),) * 3
    return tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*there))


def _score(
    prediction: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    *,
    drawn: bool,
    spacing: Sequence[float],
    metrics: Collection[str],
    tolerance: float,
) -> ClassScores:
    ml = float(np.prod(spacing)) / 1000
    predicted, true = int(np.count_nonzero(prediction)), int(np.count_nonzero(truth))
    names = [name for name in METRICS if name in metrics]
    if not drawn:
        return ClassScores("not annotated", dict.fromkeys(names), None, predicted * ml)
    presence = _presence(predicted, true)
    if presence == "neither":
        return ClassScores(presence, dict.fromkeys(names), 0.0, 0.0)
    hit = int(np.count_nonzero(prediction & truth))
    values: dict[str, float | None] = {
        "dice": 2 * hit / (predicted + true),
        "jaccard": hit / (predicted + true - hit),
        "sensitivity": hit / true if true else None,
        "precision": hit / predicted if predicted else None,
        "volume_error": (predicted - true) * ml,
        "relative_volume_error": (predicted - true) / true if true else None,
        "hd95": None,
        "assd": None,
        "nsd": 0.0,
    }
    if presence == "both":
        if "hd95" in metrics or "assd" in metrics:
            distances = voxel_distances(prediction, truth, spacing=spacing)
            values |= {"hd95": distances.hd95, "assd": distances.assd}
        if "nsd" in metrics:
            values["nsd"] = surface_dice(prediction, truth, spacing=spacing, tolerance=tolerance)
    return ClassScores(presence, {name: values[name] for name in names}, true * ml, predicted * ml)


def _presence(predicted: int, true: int) -> Presence:
    if predicted and true:
        return "both"
    if true:
        return "truth only"
    return "prediction only" if predicted else "neither"

"""The fingerprint of a dataset: its grids, intensities and classes in numbers, and settings that follow from them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lampseg.data.cases import Case
from lampseg.data.fingerprint.case_figures import FOREGROUND, IMAGE, CaseFigures, CaseHeader, ClassFigures

VERSION = 1
"""Of the JSON form; raised when a key changes its meaning or goes. New keys do not raise it."""
PERCENTILES = (0.5, 5, 25, 50, 75, 95, 99.5)
MOST_SAMPLED = 10_000
"""Voxels of a class drawn in one case, as nnU-Net draws."""
MOST_KEPT = 500_000
"""Voxels of a class drawn over all cases, so that the memory does not grow with the dataset."""
ANISOTROPIC = 3.0
AIR = -200.0
"""Where values go below this and are whole numbers, they are taken for Hounsfield units."""

Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """A case that could be read."""

    case: Case
    part: str
    """training or test."""
    header: CaseHeader
    figures: CaseFigures


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of some numbers."""

    min: float
    median: float
    max: float


@dataclass(frozen=True)
class ClassSummary:
    """One organ over the training cases; sizes are those of the cases where it is present."""

    name: str
    annotated: int
    """Cases in which it was drawn, or would have been."""
    present: int
    not_annotated: tuple[str, ...]
    """Ids of the labelled cases in which it was not drawn."""
    share: float | None
    """Of all voxels of the cases in which it is annotated."""
    voxels: Spread | None
    ml: Spread | None
    box_voxels: tuple[Spread, ...] | None
    """Of the bounding box, along x, y and z."""
    box_mm: tuple[Spread, ...] | None
    touches_border: tuple[str, ...]
    """Ids of the cases in which it reaches the border of the image: it may be cut off."""


@dataclass(frozen=True)
class Intensities:
    """Percentiles of one channel at sampled voxels."""

    region: str
    """`image` (all voxels), `foreground` (any organ), or the name of a class."""
    channel: str
    cases: int
    voxels: int
    """Of the sample, over all cases."""
    percentiles: Mapping[str, float]


@dataclass(frozen=True)
class Suggestions:
    """Settings that follow from the numbers by nnU-Net's rules: a start, not an optimum."""

    spacing: tuple[float, float, float]
    window: tuple[float, float] | None
    """None: normalise by mean and deviation."""


@dataclass(frozen=True, eq=False)
class Fingerprint:
    """What `lampseg inspect` finds. `measured` is in the order of the dataset."""

    dataset: str
    classes: tuple[str, ...]
    channels: tuple[str, ...]
    measured: tuple[Measured, ...]
    sampled: int
    """Voxels drawn of each class in each case at most."""
    summaries: tuple[ClassSummary, ...]
    intensities: tuple[Intensities, ...]
    suggestions: Suggestions

    @property
    def largest(self) -> Measured:
        """The case of most voxels."""
        return max(self.measured, key=lambda case: np.prod(case.header.shape))

    def spread(self, values: Callable[[CaseHeader], Sequence[float]]) -> tuple[Spread, ...]:
        """Of three numbers of each header, along x, y and z."""
        return _spreads([values(case.header) for case in self.measured])


def sample_size(cases: int) -> int:
    """Voxels to be drawn of each class in each of so many cases."""
    return min(MOST_SAMPLED, max(1, MOST_KEPT // max(1, cases)))


def make_fingerprint(
    dataset: str, *, classes: Sequence[str], channels: Sequence[str], measured: Sequence[Measured], sampled: int
) -> Fingerprint:
    """Sums up the cases. Classes and intensities are those of the training cases, or of all if there is none.

    Args:
        measured: at least one.
        sampled: what `measure_case` was given as `sample`.
    """
    assert measured
    names = tuple(channels)
    if len(names) != measured[0].header.channels:
        names = tuple(f"channel {index}" for index in range(measured[0].header.channels))
    training = [case for case in measured if case.part == "training"] or list(measured)
    labelled = [case for case in training if case.case.labelled]
    summaries = tuple(_summary(index, name, labelled) for index, name in enumerate(classes) if index)
    intensities = tuple(_intensities(classes, names, training))
    return Fingerprint(
        dataset,
        tuple(classes),
        names,
        tuple(measured),
        sampled,
        summaries,
        intensities,
        Suggestions(suggested_spacing([case.header for case in training]), _suggested_window(intensities, training)),
    )


def _summary(index: int, name: str, labelled: Sequence[Measured]) -> ClassSummary:
    drawn = [m for m in labelled if m.case.annotated is None or index in m.case.annotated]
    there: list[tuple[Measured, ClassFigures]] = [
        (m, m.figures.classes[index]) for m in drawn if index in m.figures.classes
    ]
    everything = sum(float(np.prod(m.header.shape)) for m in drawn)
    figures = [each for _, each in there]
    return ClassSummary(
        name,
        len(drawn),
        len(there),
        tuple(m.case.id for m in labelled if m not in drawn),
        sum(each.voxels for each in figures) / everything if everything else None,
        _spreads([[each.voxels] for each in figures])[0] if figures else None,
        _spreads([[each.ml] for each in figures])[0] if figures else None,
        _spreads([each.box_voxels for each in figures]) if figures else None,
        _spreads([each.box_mm for each in figures]) if figures else None,
        tuple(m.case.id for m, each in there if each.touches_border),
    )


def _spreads(rows: Sequence[Sequence[float]]) -> tuple[Spread, ...]:
    table = np.asarray(rows, dtype=np.float64)
    ends = zip(table.min(axis=0), np.median(table, axis=0), table.max(axis=0))
    return tuple(Spread(float(low), float(middle), float(high)) for low, middle, high in ends)


def _intensities(classes: Sequence[str], channels: Sequence[str], cases: Sequence[Measured]) -> list[Intensities]:
    rows = []
    regions = {IMAGE: "image", FOREGROUND: "foreground"} | dict(enumerate(classes))
    for key, region in regions.items():
        for channel, name in enumerate(channels):
            parts = [
                m.figures.samples[key][channel]
                for m in cases
                if key in m.figures.samples and channel < len(m.figures.samples[key])
            ]
            parts = [part for part in parts if part.size]
            if parts:
                values = np.concatenate(parts)
                found = np.percentile(values.astype(np.float64), PERCENTILES)
                percentiles = {f"{rank:g}": float(value) for rank, value in zip(PERCENTILES, found)}
                rows.append(Intensities(region, name, len(parts), values.size, percentiles))
    return rows


def suggested_spacing(headers: Sequence[CaseHeader]) -> tuple[float, float, float]:
    """nnU-Net's rule: the median of each axis; along an axis of much thicker slices, their 10th percentile.

    An axis is that if its median spacing is more than 3 times the others', and its median size less than a third of
    theirs (Isensee et al., Nature Methods 2021, and its `determine_fullres_target_spacing`).
    """
    spacings = np.asarray([header.spacing for header in headers])
    sizes = np.median([header.shape for header in headers], axis=0)
    target = np.median(spacings, axis=0)
    worst = int(target.argmax())
    others = [axis for axis in range(3) if axis != worst]
    if target[worst] > ANISOTROPIC * target[others].max() and sizes[worst] * ANISOTROPIC < sizes[others].min():
        target[worst] = max(np.percentile(spacings[:, worst], 10), target[others].max())
    x, y, z = (float(f"{value:.4g}") for value in target)
    return x, y, z


def _suggested_window(intensities: Sequence[Intensities], cases: Sequence[Measured]) -> tuple[float, float] | None:
    """nnU-Net's rule for CT: the 0.5th and 99.5th percentile of the foreground."""
    foreground = [row for row in intensities if row.region == "foreground"]
    if len(foreground) != 1 or any(len(m.figures.intensity) != 1 for m in cases):
        return None
    hounsfield = any(m.figures.intensity[0][0] < AIR for m in cases) and all(
        bool((sample == np.rint(sample)).all()) for m in cases for sample in m.figures.samples.values()
    )
    low, high = (round(foreground[0].percentiles[rank]) for rank in ("0.5", "99.5"))
    return (float(low), float(high)) if hounsfield and low < high else None


def fingerprint_json(found: Fingerprint) -> dict[str, Any]:
    """The fingerprint as plain values; docs/how-to/inspect-your-data.md explains the keys."""
    return {
        "version": VERSION,
        "dataset": found.dataset,
        "channels": list(found.channels),
        "classes": list(found.classes),
        "cases": [_case_json(case, found.classes) for case in found.measured],
        "grids": {
            "shape": [asdict(spread) for spread in found.spread(lambda header: header.shape)],
            "spacing": [asdict(spread) for spread in found.spread(lambda header: header.spacing)],
        },
        "per_class": [asdict(summary) for summary in found.summaries],
        "sample_per_case": found.sampled,
        "intensities": [asdict(row) for row in found.intensities],
        "suggestions": asdict(found.suggestions),
    }


def _case_json(measured: Measured, classes: Sequence[str]) -> dict[str, Any]:
    case, figures = measured.case, measured.figures
    annotated = range(1, len(classes)) if case.annotated is None else case.annotated
    return {
        "id": case.id,
        "part": measured.part,
        **asdict(measured.header),
        "intensity": [dict(zip(("min", "mean", "max"), channel)) for channel in figures.intensity],
        "annotated": [classes[index] for index in annotated] if case.labelled else None,
        "background_voxels": figures.background,
        "organs": {classes[index]: asdict(each) for index, each in sorted(figures.classes.items())},
    }

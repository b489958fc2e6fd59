"""What a fingerprint shows that its owner should look at: mixed grids, copies, labels on padding, empty label maps."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from lampseg.data.fingerprint.fingerprint import Fingerprint

MIXED = 2.0
"""Spacings of one axis that differ by more than this are named."""
ON_PADDING = 0.05
"""Share of an organ's voxels on the image's lowest value above which the case is named."""


def fingerprint_notes(found: Fingerprint) -> list[str]:
    """One sentence for each thing, with the cases that it is about."""
    return [
        *_grids(found),
        *_copies(found),
        *_labels(found),
        *_annotations(found),
        *_contours(found),
    ]


def _grids(found: Fingerprint) -> Iterator[str]:
    for axis, spread in zip("xyz", found.spread(lambda header: header.spacing)):
        if spread.max > MIXED * spread.min:
            yield (
                f"spacing along {axis} goes from {spread.min:.3g} to {spread.max:.3g} mm: set data.spacing, so that "
                "the network sees one"
            )
    orientations = Counter(case.header.orientation for case in found.measured)
    if len(orientations) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in sorted(orientations.items()))
        yield f"orientations are mixed ({listed}); lampseg turns all scans to RAS, other software may not"
    oblique = [case.case.id for case in found.measured if case.header.oblique > 1]
    if oblique:
        yield (f"{len(oblique)} scan(s) are tilted by more than 1 degree ({few(oblique)}): data.spacing keeps the tilt")
    channels = Counter(case.header.channels for case in found.measured)
    if len(channels) > 1:
        usual = channels.most_common(1)[0][0]
        other = [case.case.id for case in found.measured if case.header.channels != usual]
        yield f"the number of channels is not {usual} in {few(other)}: training needs the same in all cases"


def _copies(found: Fingerprint) -> Iterator[str]:
    same: dict[str, list[str]] = {}
    for case in found.measured:
        same.setdefault(case.figures.digest, []).append(f"{case.case.id} ({case.part})")
    for names in same.values():
        if len(names) > 1:
            yield f"{', '.join(names)} hold the same voxels: keep one"


def _labels(found: Fingerprint) -> Iterator[str]:
    empty = [m.case.id for m in found.measured if m.case.labelled and not m.figures.classes]
    if empty:
        yield f"{len(empty)} label map(s) are all background: {few(empty)}"
    for index, name in enumerate(found.classes):
        outside = [
            f"{m.case.id} ({m.figures.at_minimum[index]:.0%})"
            for m in found.measured
            if m.figures.at_minimum.get(index, 0) > ON_PADDING
        ]
        if outside:
            yield (
                f"voxels of {name} hold the image's lowest value, as those outside the field of view do, in "
                f"{few(outside)}: does the label map belong to the image?"
            )


def _annotations(found: Fingerprint) -> Iterator[str]:
    for summary in found.summaries:
        if summary.annotated and not summary.present:
            yield f"{summary.name} is present in no training case"
        elif not summary.annotated and any(m.case.labelled for m in found.measured):
            yield f"{summary.name} is annotated in no training case"
        if summary.touches_border:
            yield f"{summary.name} reaches the border of the image in {few(summary.touches_border)}: it may be cut off"
    unlabelled = [m.case.id for m in found.measured if m.part == "test" and not m.case.labelled]
    if unlabelled:
        yield f"{len(unlabelled)} test case(s) have no labels to score predictions against: {few(unlabelled)}"


def _contours(found: Fingerprint) -> Iterator[str]:
    for index, name in enumerate(found.classes):
        gaps = [f"{m.case.id} ({m.figures.gaps[index]})" for m in found.measured if index in m.figures.gaps]
        if gaps:
            yield (
                f"contours of {name} leave slices out between the first and the last one, which stay empty: {few(gaps)}"
            )


def few(names: Iterable[str] | Sequence[str]) -> str:
    """The first five, and how many more."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

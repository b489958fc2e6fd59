"""Slices through an organ with the contours of truth and prediction on three orthogonal planes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from lampseg.evaluation.report.case_files import CaseArrays, CaseFiles, read_case
from lampseg.evaluation.report.colours import class_colour
from lampseg.evaluation.report.figures import plain

_PLANES = (("sagittal", 0, (1, 2), "PAIS"), ("coronal", 1, (0, 2), "RLIS"), ("axial", 2, (0, 1), "RLPA"))
"""Name, axis across, axes shown (horizontal, vertical), letters at the picture's left, right, bottom, top."""


@dataclass(frozen=True)
class SliceView:
    """One case to show. Arrays are (X, Y, Z) in RAS order: x to the patient's right, y to the front, z up."""

    title: str
    image: NDArray[Any]
    truth: NDArray[np.integer]
    prediction: NDArray[np.integer]
    class_names: tuple[str, ...]
    """Index 0 = background."""
    spacing: tuple[float, float, float]
    """mm per voxel."""
    organ: str | None = None
    """The organ the planes go through; None: the largest in the truth."""
    window: tuple[float, float] | None = None
    """Intensities shown from black to white; None: a range around what the organs hold."""
    through: Literal["organ", "error"] = "organ"
    """Whether the planes cut where most of the organ's truth is, or where most of its voxels are wrong."""

    def __post_init__(self) -> None:
        assert self.image.ndim == 3, f"expected (X, Y, Z), got {self.image.shape}"
        assert self.image.shape == self.truth.shape == self.prediction.shape, "arrays of one grid"
        assert self.organ is None or self.organ in self.class_names[1:], f"no class is named {self.organ}"

    @classmethod
    def from_files(
        cls,
        image: Path,
        truth: Path,
        prediction: Path,
        *,
        title: str,
        class_names: tuple[str, ...],
        organ: str | None = None,
        window: tuple[float, float] | None = None,
    ) -> "SliceView":
        """From three NIfTI files on one grid, of any orientation (axes are permuted and flipped, not resampled).

        Raises:
            UserError: a file cannot be read, or has another shape than the image.
        """
        case = read_case(CaseFiles(title, image, truth, prediction))
        return cls.from_arrays(case, title=title, class_names=class_names, organ=organ, window=window)

    @classmethod
    def from_arrays(
        cls,
        case: CaseArrays,
        *,
        title: str,
        class_names: tuple[str, ...],
        organ: str | None = None,
        window: tuple[float, float] | None = None,
        through: Literal["organ", "error"] = "organ",
    ) -> "SliceView":
        """From a case with truth and prediction that has been read."""
        assert case.truth is not None, "slices compare two label maps"
        assert case.prediction is not None, "slices compare two label maps"
        return cls(
            title=title,
            image=case.image,
            truth=case.truth,
            prediction=case.prediction,
            class_names=class_names,
            spacing=case.spacing,
            organ=organ,
            window=window,
            through=through,
        )

    @property
    def shown_class(self) -> int:
        """The class the planes go through: `organ`, else the largest in the truth (1 if the truth is empty)."""
        if self.organ is not None:
            return self.class_names.index(self.organ)
        counts = np.bincount(self.truth.ravel(), minlength=len(self.class_names))
        return 1 + int(counts[1:].argmax())

    @property
    def centre(self) -> tuple[int, int, int]:
        """On each axis the slice with most of what `through` names; else of truth or prediction; else the middle."""
        truth, prediction = self.truth == self.shown_class, self.prediction == self.shown_class
        for organ in (truth, prediction) if self.through == "organ" else (truth != prediction, truth, prediction):
            if organ.any():
                x, y, z = (int(organ.sum(axis=_others(axis)).argmax()) for axis in range(3))
                return x, y, z
        x, y, z = (size // 2 for size in self.image.shape)
        return x, y, z


def slice_figure(view: SliceView, *, margin: float = 25.0) -> Figure:
    """Three planes through the organ (above), and the same planes close up, `margin` mm around it (below).

    Truth is drawn solid, the prediction dashed, one colour per class. The patient's right is on the left of
    the picture, as radiologists are used to.
    """
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    grid = figure.subplots(2, 3)
    low, high = view.window if view.window is not None else _window(view)
    seen: set[int] = set()
    for column, (name, axis, (h, v), letters) in enumerate(_PLANES):
        cut = view.centre[axis]
        image, truth, prediction = (np.take(a, cut, axis=axis).T for a in (view.image, view.truth, view.prediction))
        mm_h, mm_v = view.spacing[h], view.spacing[v]
        height, width = image.shape
        extent = (-mm_h / 2, (width - 0.5) * mm_h, -mm_v / 2, (height - 0.5) * mm_v)
        box = _box(view, axis=axis, margin=margin)
        for row in range(2):
            axes: Axes = grid[row, column]
            axes.imshow(image, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent, aspect="equal")
            for labels, style in ((truth, "solid"), (prediction, "dashed")):
                for c in range(1, len(view.class_names)):
                    if (labels == c).any():
                        seen.add(c)
                        x, y = np.arange(width) * mm_h, np.arange(height) * mm_v
                        axes.contour(
                            x, y, labels == c, levels=[0.5], colors=[class_colour(c)], linestyles=style, linewidths=1.3
                        )
            if row:
                axes.set_xlim(box[0]), axes.set_ylim(box[1])
            else:
                axes.set_title(f"{name}, slice {cut}", fontsize=9)
            if h == 0:
                axes.invert_xaxis()
            _letters(axes, letters)
            axes.set_xticks([]), axes.set_yticks([])
    _legend(figure, view, sorted(seen))
    return figure


def _others(axis: int) -> tuple[int, ...]:
    return tuple(a for a in range(3) if a != axis)


def _box(view: SliceView, *, axis: int, margin: float) -> tuple[tuple[float, float], tuple[float, float]]:
    """What the close-up shows, in mm: the organ's extent in truth (or the centre) and the margin around it."""
    organ = view.truth == view.shown_class
    if view.through == "error":  # what was found elsewhere belongs to the error
        organ |= view.prediction == view.shown_class
    spans = []
    for a in _others(axis):
        where = np.flatnonzero(organ.any(axis=_others(a))) if organ.any() else np.asarray([view.centre[a]])
        low, high = where[0] * view.spacing[a] - margin, where[-1] * view.spacing[a] + margin
        size = (view.image.shape[a] - 1) * view.spacing[a]
        spans.append((max(0.0, float(low)), min(size, float(high))))
    return spans[0], spans[1]


def _window(view: SliceView) -> tuple[float, float]:
    """What the organs hold, widened by half its range on both sides; without organs, what the volume holds."""
    organs = view.image[view.truth > 0]
    low, high = np.percentile(organs if organs.size else view.image, (2, 98))
    widening = 0.5 * (high - low) or 1.0
    return float(low - widening), float(high + widening)


def _letters(axes: Axes, letters: str) -> None:
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.02), (0.5, 0.98))
    aligned = (("left", "center"), ("right", "center"), ("center", "bottom"), ("center", "top"))
    for letter, (x, y), (ha, va) in zip(letters, places, aligned):
        text = axes.text(x, y, letter, color="white", fontsize=8, ha=ha, va=va, transform=axes.transAxes)
        text.set_path_effects([withStroke(linewidth=2, foreground="black")])


def _legend(figure: Figure, view: SliceView, seen: list[int]) -> None:
    handles = [
        Line2D([], [], color="black", linestyle="solid", label="truth"),
        Line2D([], [], color="black", linestyle="dashed", label="prediction"),
        *(Line2D([], [], color=class_colour(c), linewidth=4, label=plain(view.class_names[c])) for c in seen),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)

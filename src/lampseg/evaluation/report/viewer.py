"""The report's interactive viewer: image, truth and prediction of a case, packed to be embedded in the page."""

import base64
import gzip
import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from lampseg.evaluation.report.case_files import CaseArrays
from lampseg.evaluation.report.colours import class_rgb
from lampseg.evaluation.report.parts import Section, ViewerCase, ViewerPart
from lampseg.evaluation.report.scores import ReportScores
from lampseg.evaluation.report.worst_cases import check_classes
from lampseg.evaluation.tables import bytes_text, dice_text

BUDGET = 8 * 10**6
"""Bytes of the page that a case may take; a larger one is shown with fewer voxels."""
NIIVUE_VERSION = "0.69.0"

MISSED, SUPERFLUOUS, CONFUSED = 1, 2, 3
DIFFERENCES = (
    (MISSED, "missed", (255, 64, 64)),
    (SUPERFLUOUS, "not in the truth", (255, 214, 10)),
    (CONFUSED, "another organ", (214, 92, 255)),
)
"""Where the prediction differs: value, name, colour."""


def viewer_section(cases: Sequence[ViewerCase]) -> Section:
    """The viewer with these cases; without any, an empty section."""
    if not cases:
        return Section("Viewer", [])
    text, packed = niivue()
    part = ViewerPart(
        cases=cases,
        library_text=text,
        library=packed,
        views=(("all", "all"), ("axial", "axial"), ("coronal", "coronal"), ("sagittal", "sagittal"), ("render", "3D")),
        layers=(("truth", "truth", False), ("prediction", "prediction", True), ("differences", "differences", False)),
        note=(
            "Click to move the crosshair, drag with the right button to change the contrast, click and turn the wheel "
            "to leaf through slices; turn the 3D view by dragging. An organ's name leads to it. Where truth and "
            "prediction are both shown, the truth is paler. The patient's right is on the left. "
            f"Drawn by NiiVue {NIIVUE_VERSION} (BSD 2-clause licence)."
        ),
    )
    return Section("Viewer", [part])


def viewer_case(
    case: CaseArrays,
    *,
    class_names: Sequence[str],
    window: tuple[float, float] | None = None,
    scores: ReportScores | None = None,
    budget: int = BUDGET,
) -> ViewerCase:
    """Packs a case into at most `budget` bytes, if need be with every second, third ... voxel.

    The image is stored in 8 bits over three times the `window` (None: over what 99 % of its voxels hold), so that
    its contrast can still be changed.

    Raises:
        UserError: a label map holds a class without a name.
    """
    check_classes(case, class_names)
    steps = [1, 1, 1]
    while True:
        volumes = _packed(case, steps, window=window)
        size = sum(len(text) for text in volumes.values())
        shape = [-(-voxels // step) for voxels, step in zip(case.image.shape, steps)]
        if size <= budget or max(shape) <= 8:
            break
        target = size / budget * np.prod(steps)
        while np.prod(steps) < target:  # towards voxels that are as long as wide
            axis = int(np.argmin([mm * step if n > 8 else np.inf for mm, step, n in zip(case.spacing, steps, shape)]))
            steps[axis] += 1
            shape = [-(-voxels // step) for voxels, step in zip(case.image.shape, steps)]
    low, high = window if window is not None else _range(case.image)
    dice = scores.of_case("dice", case.name) if scores is not None else {}
    tree: dict[str, Any] = {
        "name": case.name,
        "window": [low, high],
        "volumes": volumes,
        "organs": [_organ(case, c, name, dice.get(name)) for c, name in enumerate(class_names) if c > 0],
        "differences": [{"value": v, "name": name, "colour": list(rgb)} for v, name, rgb in DIFFERENCES],
        "note": _note(case, steps, size),
    }
    return ViewerCase(case.name, json.dumps(tree, allow_nan=False))


def numbered_classes(case: CaseArrays) -> tuple[str, ...]:
    """Names for classes of which only the values are known."""
    tops = [int(labels.max()) for labels in (case.truth, case.prediction) if labels is not None]
    top = max(tops, default=0)
    return ("background", *(f"class {value}" for value in range(1, top + 1)))


def _organ(case: CaseArrays, c: int, name: str, dice: float | None) -> dict[str, Any]:
    """What the legend shows of a class, and where to go when it is chosen: its slice with most truth, in mm."""
    millilitres = float(np.prod(case.spacing)) / 1000
    place, volumes = None, {}
    for what, labels in (("truth", case.truth), ("prediction", case.prediction)):
        if labels is None:
            continue
        organ = labels == c
        volumes[what] = f"{organ.sum() * millilitres:.3g} ml"
        if place is None and organ.any():
            place = _inside(organ, case.affine)
    return {
        "value": c,
        "name": name,
        "colour": list(class_rgb(c)),
        "dice": dice_text(dice),
        "volumes": volumes,
        "place": place,
    }


def _inside(organ: NDArray[np.bool_], affine: NDArray[np.float64]) -> list[float]:
    """In mm the organ's voxel that is nearest to its centre of mass, which itself may lie outside."""
    voxels = np.argwhere(organ)
    nearest = voxels[np.square(voxels - voxels.mean(axis=0)).sum(axis=1).argmin()]
    return [float(mm) for mm in (affine @ [*nearest, 1.0])[:3]]


def _note(case: CaseArrays, steps: Sequence[int], size: int) -> str:
    shape = " x ".join(map(str, case.image.shape))
    spacing = " x ".join(f"{mm:.3g}" for mm in case.spacing)
    text = f"{shape} voxels of {spacing} mm, {bytes_text(size)} of this page."
    if max(steps) == 1:
        return text
    shown = " x ".join(f"{mm * step:.3g}" for mm, step in zip(case.spacing, steps))
    return f"{text} Shown with voxels of {shown} mm: thin structures may look broken. Volumes and Dice are exact."


def _packed(case: CaseArrays, steps: Sequence[int], *, window: tuple[float, float] | None) -> dict[str, str]:
    """Name -> volume; image voxels are means over the steps, label voxels those in the middle of them."""
    affine = _coarser(case.affine, steps)
    found = {"image": _image(case.image, affine, steps, window=window)}
    every = tuple(slice(step // 2 if n > step // 2 else 0, None, step) for step, n in zip(steps, case.image.shape))
    truth = None if case.truth is None else case.truth[every]
    prediction = None if case.prediction is None else case.prediction[every]
    shape = tuple(-(-n // step) for n, step in zip(case.image.shape, steps))
    for name, labels in (("truth", truth), ("prediction", prediction), ("differences", _differ(truth, prediction))):
        if labels is not None:
            # An axis whose last step is cut short has no voxel in its middle.
            whole = np.pad(labels, [(0, n - m) for n, m in zip(shape, labels.shape)])
            found[name] = _nifti(whole, affine, label=True)
    return found


def _differ(truth: NDArray[np.uint8] | None, prediction: NDArray[np.uint8] | None) -> NDArray[np.uint8] | None:
    if truth is None or prediction is None:
        return None
    wrong = truth != prediction
    kinds = np.where(prediction == 0, MISSED, np.where(truth == 0, SUPERFLUOUS, CONFUSED))
    return np.where(wrong, kinds, 0).astype(np.uint8)


def _coarser(affine: NDArray[np.float64], steps: Sequence[int]) -> NDArray[np.float64]:
    """The affine of the coarser grid: its first voxel lies in the middle of the voxels it stands for."""
    first = affine @ [*((step - 1) / 2 for step in steps), 1.0]
    coarse = affine @ np.diag([*steps, 1.0])
    coarse[:, 3] = first
    return coarse


def _image(
    image: NDArray[np.float32],
    affine: NDArray[np.float64],
    steps: Sequence[int],
    *,
    window: tuple[float, float] | None,
) -> str:
    for axis, step in enumerate(steps):
        if step > 1:
            starts = np.arange(0, image.shape[axis], step)
            counts = np.diff([*starts, image.shape[axis]]).reshape([-1 if a == axis else 1 for a in range(3)])
            image = (np.add.reduceat(image, starts, axis=axis) / counts).astype(np.float32)
    low, high = _range(image)
    if window is not None:
        width = window[1] - window[0]
        low, high = max(float(image.min()), window[0] - width), min(float(image.max()), window[1] + width)
        low, high = (low, high) if low < high else _range(image)
    scale = (high - low) / 255
    bytes_of = np.rint((np.clip(image, low, high) - low) / scale).astype(np.uint8)
    return _nifti(bytes_of, affine, slope=scale, intercept=low)


def _range(image: NDArray[np.float32]) -> tuple[float, float]:
    low, high = (float(v) for v in np.percentile(image, (0.5, 99.5)))
    return (low, high) if low < high else (low, low + 1.0)


def _nifti(
    array: NDArray[np.uint8],
    affine: NDArray[np.float64],
    *,
    slope: float = 1.0,
    intercept: float = 0.0,
    label: bool = False,
) -> str:
    """A NIfTI-1 file, compressed, in base64: only what this page shows is in it, nothing of the file's own header."""
    image = nibabel.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    if label:
        image.header.set_intent("label")  # by which NiiVue draws classes and not intensities
    header = image.header.copy()
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = slope, intercept, 352
    raw = header.binaryblock + bytes(4) + array.tobytes(order="F")
    return base64.b64encode(gzip.compress(raw, 6, mtime=0)).decode("ascii")


@cache
def niivue() -> tuple[str, str]:
    """The viewer's library, as text and as base64 of its gzip file, which makes the page 1.3 MB smaller."""
    source = resources.files("lampseg.evaluation.report") / "vendor" / "niivue" / "niivue.umd.js"
    text = source.read_text(encoding="utf-8")
    return text, base64.b64encode(gzip.compress(text.encode("utf-8"), 9, mtime=0)).decode("ascii")

"""The cases of a dataset on the network's grid, kept in a folder case by case, and reused."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lampseg.config import DataConfig
from lampseg.data.cache import SUFFIX, read_array, read_entry, remove_remains, write_array, write_entry
from lampseg.data.case_files import read_image, read_truth
from lampseg.data.dataset import Case
from lampseg.data.grid import image_to_network, to_grid, triple
from lampseg.data.volume import Volume
from lampseg.errors import UserError

FORMAT_VERSION = 3
"""Raise it whenever the same files and options would give other cached arrays."""
LIBRARIES = ("monai", "torch", "nibabel")
"""Those whose code makes the arrays: another version (major.minor) of one prepares anew."""
_CASE_FIELDS = ("id", "images", "label", "annotated", "masks")  # whose meaning the key holds under names of its own
POINTS = 10_000
"""Voxel coordinates kept per class, from which the centres of positive patches are drawn."""


@dataclass(frozen=True)
class PreparedCase:
    """A case on the network's grid, as files of which a box can be read without the rest."""

    id: str
    image: Path
    """.b2nd, float32 (C, X, Y, Z), intensities as the network reads them."""
    label: Path | None
    """.b2nd, uint8 (X, Y, Z)."""
    channels: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    annotated: tuple[int, ...]
    """Class indices from 1 whose label is known; none for a case without a label map."""
    voxels: tuple[int, ...]
    """Voxels per class, background first; all 0 without a label map."""
    points: Path | None
    """.npz, `class_<index>`: int32 (up to 10000, 3), random voxels of that class."""

    def image_part(self, region: tuple[slice, ...] | None = None) -> npt.NDArray[np.float32]:
        """Intensities (C, X, Y, Z) of a box within the volume, or of all of it; only the box's chunks are read."""
        return read_array(self.image, region)

    def label_part(self, region: tuple[slice, ...] | None = None) -> npt.NDArray[np.uint8]:
        """Class indices (X, Y, Z) of a box within a labelled volume, or of all of it."""
        assert self.label is not None
        return read_array(self.label, region)


def prepare(
    cases: Sequence[Case],
    *,
    classes: int,
    data: DataConfig,
    folder: Path,
    on_case: Callable[[str], None] | None = None,
) -> tuple[PreparedCase, ...]:
    """Brings every case onto the network's grid, or finds it in `folder` from an earlier call.

    A case is reused only if its files (path, size, time of change), annotated classes, the options and the libraries
    are those it was prepared with; what was prepared with others stays beside it, so that several runs may share a
    folder. A case appears whole or not at all, whoever is killed.

    Args:
        on_case: called with each case's id when it is ready.

    Raises:
        UserError: as `read_image` and `read_truth`; voxels of a class that is listed as not annotated; `folder`
            cannot be written; a process of `data.jobs` was killed.
    """
    from lampseg.data.prepare_jobs import in_processes, jobs_for  # here: it starts processes that import this module

    remove_remains(folder)
    ready = {case.id: found for case in cases if (found := _found(case, classes, data, folder)) is not None}
    missing = [case for case in cases if case.id not in ready]
    for case in cases:
        if case.id in ready and on_case is not None:
            on_case(case.id)
    jobs = jobs_for(missing, data)
    todo = (missing, classes, data, folder)
    for case in in_processes(*todo, jobs=jobs) if jobs > 1 else _here(*todo):
        found = _found(case, classes, data, folder)
        assert found is not None
        ready[case.id] = found
        if on_case is not None:
            on_case(case.id)
    return tuple(ready[case.id] for case in cases)


def _here(cases: Sequence[Case], classes: int, data: DataConfig, folder: Path) -> Iterator[Case]:
    for case in cases:
        prepare_case(case, classes, data, folder)
        yield case


def prepare_case(case: Case, classes: int, data: DataConfig, folder: Path) -> None:
    """Prepares one case into `folder`, whether or not it is there.

    Raises:
        UserError: as `prepare`.
    """
    key = _key(case, classes, data)
    try:
        write_entry(folder, case.id, key, lambda entry: _fill(entry, case, classes, data))
    except OSError as error:
        raise UserError(
            f"{folder}: the preprocessed case {case.id} cannot be written ({error}); free disk space or set "
            "data.cache to another folder"
        ) from error


def _fill(entry: Path, case: Case, classes: int, data: DataConfig) -> dict[str, Any]:
    volume = read_image(case.images, voxel_size=data.voxel_size)
    image, info = image_to_network(volume, data=data)
    write_array(entry / f"image{SUFFIX}", image)
    voxels = (0,) * classes
    if case.labelled:
        label = _label_to_network(case, volume, classes, data)
        assert label.shape == info.shape
        voxels = tuple(int(count) for count in np.bincount(label.ravel(), minlength=classes))
        write_array(entry / f"label{SUFFIX}", label)
        np.savez(entry / "points.npz", allow_pickle=False, **_points(label, case.id, classes))
    return {"channels": len(image), "shape": info.shape, "spacing": info.spacing, "voxels": voxels}


def _label_to_network(case: Case, volume: Volume, classes: int, data: DataConfig) -> npt.NDArray[np.uint8]:
    label = read_truth(case, classes=classes, like=volume)
    if case.annotated is not None:
        drawn = set(np.unique(label).tolist()) - {0, *case.annotated}
        if drawn:
            raise UserError(
                f"{case.label or case.id}: holds voxels of class {', '.join(map(str, sorted(drawn)))}, which "
                f"dataset.json lists as `not_annotated` for {case.id}; remove the entry or the voxels"
            )
    on_grid, _ = to_grid(label[None], volume.affine, data, mode="nearest")
    out: npt.NDArray[np.uint8] = on_grid.numpy()[0].round().astype(np.uint8)
    return out


def _points(label: npt.NDArray[np.uint8], case_id: str, classes: int) -> dict[str, npt.NDArray[np.int32]]:
    """Random voxels of every class (a fixed seed: the cache must not depend on when or for which run it was made)."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(case_id.encode()).digest()[:8]))
    points = {}
    flat = label.ravel()
    for index in range(1, classes):
        where = np.flatnonzero(flat == index)
        if where.size > POINTS:
            where = np.sort(rng.choice(where, POINTS, replace=False))
        points[f"class_{index}"] = np.stack(np.unravel_index(where, label.shape), axis=1).astype(np.int32)
    return points


def _key(case: Case, classes: int, data: DataConfig) -> dict[str, Any]:
    """All that decides what is prepared, as JSON gives it back."""

    options = data.model_dump(include={"spacing", "voxel_size", "window", "intensity"})
    more = {field.name: getattr(case, field.name) for field in fields(case) if field.name not in _CASE_FIELDS}
    key = {
        "version": FORMAT_VERSION,
        "libraries": {name: ".".join(version(name).split(".")[:2]) for name in LIBRARIES},
        "files": [_stamp(path) for path in case.files],
        "masks": [index for index, _ in case.masks],
        "labelled": case.labelled,
        "annotated": list(_annotated(case, classes)),
        "classes": classes,
        "case": more,
        **options,
    }
    as_read: dict[str, Any] = json.loads(json.dumps(key, default=str))
    return as_read


def _stamp(path: Path) -> list[Any] | None:
    """By what a changed file is told; for a folder (a DICOM series), the stamps of its files, as a digest."""
    try:
        state = path.stat()
        if path.is_dir():
            stamps = [_stamp(inner) for inner in sorted(path.iterdir())]
            return [str(path.resolve()), hashlib.sha256(json.dumps(stamps).encode()).hexdigest()]
    except OSError:
        return None  # reading it will say what is wrong
    return [str(path.resolve()), state.st_size, state.st_mtime_ns]


def _annotated(case: Case, classes: int) -> tuple[int, ...]:
    if not case.labelled:
        return ()
    return tuple(range(1, classes)) if case.annotated is None else case.annotated


def _found(case: Case, classes: int, data: DataConfig, folder: Path) -> PreparedCase | None:
    found = read_entry(folder, case.id, _key(case, classes, data))
    if found is None:
        return None
    entry, facts = found
    x, y, z = facts["spacing"]
    return PreparedCase(
        case.id,
        entry / f"image{SUFFIX}",
        entry / f"label{SUFFIX}" if case.labelled else None,
        int(facts["channels"]),
        triple(facts["shape"]),
        (x, y, z),
        _annotated(case, classes),
        tuple(facts["voxels"]),
        entry / "points.npz" if case.labelled else None,
    )

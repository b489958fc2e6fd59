"""The cases of a dataset on the network's grid, kept in a folder case by case, and reused."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lampseg.config import DataConfig
from lampseg.data.case_files import read_image, read_truth
from lampseg.data.dataset import Case
from lampseg.data.grid import image_to_network, to_grid, triple
from lampseg.data.volume import Volume, remove_if_there
from lampseg.errors import UserError

FORMAT_VERSION = 2
"""Raise it whenever the same files and options would give other cached arrays."""
POINTS = 10_000
"""Voxel coordinates kept per class, from which the centres of positive patches are drawn."""


@dataclass(frozen=True)
class PreparedCase:
    """A case on the network's grid, as files that `np.load(..., mmap_mode="r")` opens without reading them."""

    id: str
    image: Path
    """.npy, float32 (C, X, Y, Z), intensities as the network reads them."""
    label: Path | None
    """.npy, uint8 (X, Y, Z)."""
    channels: int
    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    annotated: tuple[int, ...]
    """Class indices from 1 whose label is known; none for a case without a label map."""
    voxels: tuple[int, ...]
    """Voxels per class, background first; all 0 without a label map."""
    points: Path | None
    """.npz, `class_<index>`: int32 (up to 10000, 3), random voxels of that class."""


def prepare(
    cases: Sequence[Case],
    *,
    classes: int,
    data: DataConfig,
    folder: Path,
    on_case: Callable[[str], None] | None = None,
) -> tuple[PreparedCase, ...]:
    """Brings every case onto the network's grid, or finds it in `folder` from an earlier call.

    A case is reused only if its files (path, size, time of change), annotated classes and the options are those it
    was prepared with. Its `<id>.json` is written last, so a killed call leaves no half case behind.

    Args:
        on_case: called with each case's id when it is ready.

    Raises:
        UserError: as `read_volume` and `read_label`; voxels of a class that is listed as not annotated; `folder`
            cannot be written.
    """
    prepared = []
    for case in cases:
        key = _key(case, classes, data)
        found = _cached(folder, case.id, key)
        if found is None:
            try:
                found = _prepare_case(case, classes, data, folder, key)
            except OSError as error:
                raise UserError(
                    f"{folder}: the preprocessed case {case.id} cannot be written ({error}); free disk space or set "
                    "data.cache to another folder"
                ) from error
        prepared.append(found)
        if on_case is not None:
            on_case(case.id)
    return tuple(prepared)


def _prepare_case(case: Case, classes: int, data: DataConfig, folder: Path, key: dict[str, Any]) -> PreparedCase:
    folder.mkdir(parents=True, exist_ok=True)
    record = folder / f"{case.id}.json"
    record.unlink(missing_ok=True)  # from here until the end the case counts as not prepared
    volume = read_image(case.images, voxel_size=data.voxel_size)
    image, info = image_to_network(volume, data=data)
    _write(folder / f"{case.id}.image.npy", lambda file: np.save(file, image))
    voxels = (0,) * classes
    if case.labelled:
        label = _label_to_network(case, volume, classes, data)
        assert label.shape == info.shape
        voxels = tuple(int(count) for count in np.bincount(label.ravel(), minlength=classes))
        points = _points(label, case.id, classes)
        _write(folder / f"{case.id}.label.npy", lambda file: np.save(file, label))
        _write(folder / f"{case.id}.points.npz", lambda file: np.savez(file, allow_pickle=False, **points))
    facts = {"key": key, "channels": len(image), "shape": info.shape, "spacing": info.spacing, "voxels": voxels}
    _write(record, lambda file: file.write(json.dumps(facts).encode()))
    found = _cached(folder, case.id, key)
    assert found is not None
    return found


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
    def stamp(path: Path) -> list[Any] | None:
        try:
            state = path.stat()
        except OSError:
            return None  # reading it will say what is wrong
        return [str(path.resolve()), state.st_size, state.st_mtime_ns]

    return {
        "version": FORMAT_VERSION,
        "files": [stamp(path) for path in case.files],
        "labelled": case.labelled,
        "annotated": list(_annotated(case, classes)),
        "classes": classes,
        "spacing": None if data.spacing is None else list(data.spacing),
        "voxel_size": list(data.voxel_size),
        "window": None if data.window is None else list(data.window),
    }


def _annotated(case: Case, classes: int) -> tuple[int, ...]:
    if not case.labelled:
        return ()
    return tuple(range(1, classes)) if case.annotated is None else case.annotated


def _cached(folder: Path, case_id: str, key: dict[str, Any]) -> PreparedCase | None:
    try:
        facts = json.loads((folder / f"{case_id}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(facts, dict) or facts.get("key") != key:
        return None
    image = folder / f"{case_id}.image.npy"
    label = None if not key["labelled"] else folder / f"{case_id}.label.npy"
    points = None if not key["labelled"] else folder / f"{case_id}.points.npz"
    # A crash of the machine may leave files that were renamed before their content reached the disk.
    voxels = math.prod(facts["shape"])
    least = ((image, 4 * voxels * facts["channels"]), (label, voxels), (points, 1))
    if not all(path is None or (path.is_file() and path.stat().st_size >= size) for path, size in least):
        return None
    x, y, z = facts["spacing"]
    return PreparedCase(
        case_id,
        image,
        label,
        int(facts["channels"]),
        triple(facts["shape"]),
        (x, y, z),
        tuple(key["annotated"]),
        tuple(facts["voxels"]),
        points,
    )


def _write(path: Path, fill: Callable[[Any], object]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            fill(file)
        os.replace(partial, path)
    except OSError:
        remove_if_there(partial)
        raise

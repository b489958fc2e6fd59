"""Scores come back to the input's grid as if all of them were interpolated at once, however they are cut."""

import itertools
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from scipy import ndimage

from lampseg.config import DataConfig
from lampseg.data import GridInfo, Volume, image_to_network, labels_to_grid, read_volume
from lampseg.data.back_to_grid import labels_in, lines_of, region_of
from lampseg.inference.labelling import Labelling
from lampseg.inference.tiles import Box, Tile, overlap, read, sizes, whole, within

INPUT = (23, 14, 17)


def affine_of(columns: Any, origin: Any = (5, -3, 8)) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = columns, origin
    return affine


def turned(degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def grids_of(affine: np.ndarray, spacing: Any, shape: Any = INPUT) -> GridInfo:
    data = DataConfig(root="unused", spacing=spacing, window=(0, 1))  # type: ignore[arg-type]
    return image_to_network(Volume(np.zeros((1, *shape), np.float32), affine), data=data)[1]


PERMUTED = np.array([[0, 0, 1.5], [-0.9, 0, 0], [0, 2.1, 0]])
CASES = {
    "finer": (turned(10) @ np.diag([-1.5, 2.0, 2.5]), (1, 1, 1)),
    "coarser": (turned(-8) @ np.diag([1.0, 1.1, 0.9]), (2.7, 3, 2)),
    "mixed and permuted": (PERMUTED, (2, 1, 1.5)),
    "one axis": (np.diag([1.0, 1.0, 3.0]), (1, 1, 1)),
}


def scores_on(info: GridInfo, classes: int = 4) -> torch.Tensor:
    return torch.randn((classes, *info.shape), generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def at_once(scores: torch.Tensor, info: GridInfo) -> np.ndarray:
    """scipy's interpolation of every class on the whole grid."""
    mapping = np.linalg.solve(info.affine, info.input_affine)
    found = [
        ndimage.affine_transform(one, mapping, output_shape=info.input_shape, order=1, mode="nearest", prefilter=False)
        for one in scores.numpy()
    ]
    return np.stack(found).argmax(0)


def everything(scores: torch.Tensor, info: GridInfo, **more: Any) -> np.ndarray:
    lines = lines_of(info)
    assert lines is not None
    region = region_of(lines, whole(info.shape))
    assert region == whole(info.input_shape)
    return labels_in(region, lines, lambda box: scores[(slice(None), *box)], **more)


@pytest.mark.parametrize("name", CASES)
def test_equal_to_all_classes_at_once(name: str) -> None:
    info = grids_of(affine_of(CASES[name][0]), CASES[name][1])
    assert info.shape != info.input_shape
    scores = scores_on(info)
    found = everything(scores, info)
    assert found.shape == INPUT
    np.testing.assert_array_equal(found, at_once(scores, info))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cut_makes_no_difference(name: str, dtype: torch.dtype) -> None:
    """Slabs of one plane, boxes of the network's grid with one more plane each: bit for bit the same labels."""
    info = grids_of(affine_of(CASES[name][0]), CASES[name][1])
    lines = lines_of(info)
    assert lines is not None
    scores = scores_on(info).to(dtype)
    expected = everything(scores, info)
    np.testing.assert_array_equal(everything(scores, info, voxels=1), expected)
    found = np.full(INPUT, 99, np.uint8)
    cuts = [[(0, size // 3), (size // 3, size // 2), (size // 2, size)] for size in info.shape]
    for parts in itertools.product(*cuts):
        box = tuple(slice(begin, min(end + 1, size)) for (begin, end), size in zip(parts, info.shape))
        tile = Tile(scores[(slice(None), *box)], box)  # type: ignore[arg-type]
        region = region_of(lines, tile.box)
        found[region] = labels_in(region, lines, lambda part, tile=tile: read([tile], part))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("thickness", [1, 2, 5, 100])
@pytest.mark.parametrize("resample", ["logits", "labels"])
@pytest.mark.parametrize("name", CASES)
def test_planes_one_after_the_other(name: str, resample: Any, thickness: int) -> None:
    info = grids_of(affine_of(CASES[name][0]), CASES[name][1])
    scores = scores_on(info)
    labelling = Labelling(info, classes=4, averaged=False, resample=resample)
    for begin in range(0, info.shape[0], thickness):
        part = scores[:, begin : begin + thickness]
        # What lies beyond the volume (padding) is no part of it.
        part = torch.nn.functional.pad(part, (0, 2, 0, 1), value=9.0)
        box = (slice(begin, begin + part.shape[1]), slice(0, part.shape[2]), slice(0, part.shape[3]))
        labelling.take(Tile(part, box))
    nearest = labels_to_grid(scores.argmax(0).numpy().astype(np.uint8), info)
    expected = everything(scores, info) if resample == "logits" else nearest
    np.testing.assert_array_equal(labelling.finish(), expected)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, -1)])
def test_grids_that_differ_by_axes_alone_are_exact(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    affine = affine_of((np.eye(3) * signs)[:, list(order)] * 0.8)
    info = grids_of(affine, None)
    lines = lines_of(info)
    assert lines is not None
    assert all(line.weights is None for line in lines), "nothing to interpolate"
    scores = scores_on(info)
    expected = labels_to_grid(scores.argmax(0).numpy().astype(np.uint8), info)
    np.testing.assert_array_equal(everything(scores, info), expected)


def test_a_single_plane() -> None:
    info = GridInfo((4, 5, 6), np.diag([1.0, 1.0, 1.0, 1.0]), (1, 3, 3), np.diag([9.0, 2.0, 2.0, 1.0]))
    scores = scores_on(info)
    np.testing.assert_array_equal(everything(scores, info), at_once(scores, info))


def test_a_rounded_header_counts_as_parallel() -> None:
    columns = np.diag([1.0, 1.5, 2.0]) + 1e-5 * np.array([[0, 1, -1], [1, 0, 1], [-1, 1, 0]])
    info = grids_of(affine_of(columns), (1.3, 1.3, 1.3))
    assert lines_of(info) is not None


def test_sheared_axes_get_the_nearest_label() -> None:
    columns = np.diag([1.0, 1.5, 2.0])
    columns[1, 2] = 0.6  # a tilted gantry
    info = grids_of(affine_of(columns), (1.3, 1.3, 1.3))
    assert lines_of(info) is None
    scores = scores_on(info)
    labelling = Labelling(info, classes=4, averaged=False)
    labelling.take(Tile(scores, whole(info.shape)))
    expected = labels_to_grid(scores.argmax(0).numpy().astype(np.uint8), info)
    np.testing.assert_array_equal(labelling.finish(), expected)


def test_memory_is_that_of_the_labels_and_a_slab() -> None:
    """Input grid 64 times finer, 12 classes: 12 x 4 bytes a voxel would be 48 times the labels."""
    info = GridInfo((160, 160, 160), np.diag([0.5, 0.5, 0.5, 1.0]), (40, 40, 40), np.diag([2.0, 2.0, 2.0, 1.0]))
    scores = torch.randn((12, *info.shape), generator=torch.Generator().manual_seed(1))
    labelling = Labelling(info, classes=12, averaged=False)
    labelled = 160**3
    tensors = _Peak()
    tracemalloc.start()
    with tensors:
        labelling.take(Tile(scores, whole(info.shape)))
        labels = labelling.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert labels.nbytes == labelled
    slab = 4 * 2**21
    assert peak < 1.2 * labelled
    assert tensors.largest <= slab, "the scores of one class on one slab are the largest tensor"


@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_reading_holds_an_image_once(kind: Any, tmp_path: Path) -> None:
    """And not a second time in the file's order of axes."""
    path = tmp_path / "image.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((150, 140, 120), kind), np.eye(4)), path)
    read_volume(path)  # what the libraries keep
    tracemalloc.start()
    volume = read_volume(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert volume.array.flags.c_contiguous
    assert peak < 1.4 * volume.array.nbytes


class _Peak(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the largest tensor that is made."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and not func.is_view:
            self.largest = max(self.largest, out.numel() * out.element_size())
        return out


def test_boxes() -> None:
    a: Box = (slice(2, 5), slice(0, 4), slice(1, 9))
    b: Box = (slice(4, 9), slice(1, 2), slice(9, 12))
    assert sizes(overlap(a, b)) == (1, 1, 0)
    assert sizes(overlap(b, a)) == (1, 1, 0)
    assert within(overlap(a, whole((3, 3, 3))), a) == (slice(0, 1), slice(0, 3), slice(0, 2))
    values = torch.arange(6 * 4 * 8).view(1, 6, 4, 8)
    tiles = [
        Tile(values[:, :3], (slice(0, 3), slice(0, 4), slice(0, 8))),
        Tile(values[:, 3:], (slice(3, 6), slice(0, 4), slice(0, 8))),
    ]
    across = (slice(1, 5), slice(2, 4), slice(3, 4))
    assert torch.equal(read(tiles, across), values[:, 1:5, 2:4, 3:4])
    assert read(tiles, (slice(0, 2), slice(0, 4), slice(0, 8))).data_ptr() == values.data_ptr(), "a view"

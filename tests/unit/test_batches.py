"""A mini-batch as micro-batches: nothing is lost, and the tensors fit each other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lampseg.data import Draw, PreparedCase, Sampler
from lampseg.training.batches import MicroBatch, cut


@pytest.mark.parametrize("batch", range(1, 20))
def test_a_cut_keeps_every_draw_once_in_even_parts(batch: int) -> None:
    draws = [Draw(index, (0, 0, 0), (1, 1, 1)) for index in range(batch)]
    for count in range(1, batch + 1):
        parts = cut(draws, count)
        assert [draw for part in parts for draw in part] == draws
        assert len(parts) == count
        sizes = {len(part) for part in parts}
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1


@pytest.fixture
def case(tmp_path: Path) -> PreparedCase:
    """6x5x4 voxels; class 1 in one corner, class 2 not annotated."""
    image = np.random.default_rng(0).normal(size=(6, 5, 4)).astype(np.float32)
    label = np.zeros(image.shape, np.uint8)
    label[:2, :2, :2] = 1
    np.save(tmp_path / "image.npy", image[None])
    np.save(tmp_path / "label.npy", label)
    np.savez(
        tmp_path / "points.npz", class_1=np.argwhere(label == 1).astype(np.int32), class_2=np.zeros((0, 3), np.int32)
    )
    files = (tmp_path / "image.npy", tmp_path / "label.npy")
    return PreparedCase("a", *files, 1, image.shape, (1, 1, 1), (1,), (112, 8, 0), tmp_path / "points.npz")


def sampler(case: PreparedCase, patch: tuple[int, int, int] | None) -> Sampler:
    return Sampler([case], patch=patch, batch=3, stride=(4, 4, 4), seed=0, stage=0, positive=0.5, class_balanced=True)


def test_the_tensors_of_patches(case: PreparedCase) -> None:
    source = sampler(case, (4, 4, 4))
    batch = MicroBatch(source, source.draws(0), torch.float64, torch.device("cpu"))
    assert batch.shape == (3, 1, 4, 4, 4) == tuple(batch.image().shape)
    assert (batch.image().dtype, batch.target().dtype) == (torch.float64, torch.int64)
    assert tuple(batch.target().shape) == (3, 4, 4, 4)
    assert batch.annotated().tolist() == [[True, True, False]] * 3
    assert batch.valid() is None, "nothing is padded"
    x, y, z = batch.draws[0].corner
    stored = np.load(case.image)[0, x : x + 4, y : y + 4, z : z + 4]
    np.testing.assert_array_equal(batch.image()[0, 0].numpy(), stored)


def test_the_padding_of_whole_volumes_is_marked(case: PreparedCase) -> None:
    source = sampler(case, None)
    batch = MicroBatch(source, source.draws(0)[:1], torch.float32, torch.device("cpu"))
    valid = batch.valid()
    assert valid is not None
    assert batch.shape == (1, 1, 8, 8, 4)
    assert valid.shape == batch.target().shape
    assert bool(valid[0, :6, :5, :4].all())
    assert int(valid.sum()) == 6 * 5 * 4
    assert float(batch.image()[0, 0][~valid[0]].abs().max()) == 0

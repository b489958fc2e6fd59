"""A mini-batch as micro-batches: nothing is lost, and the tensors fit each other."""

from pathlib import Path

import numpy as np
import pytest
import torch

from lampseg.config_augmentation import AugmentationConfig
from lampseg.data import Draw, PreparedCase, Sampler
from lampseg.data.cache import write_array
from lampseg.errors import UserError
from lampseg.training.ahead import ReadAhead
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
    write_array(tmp_path / "image.b2nd", image[None])
    write_array(tmp_path / "label.b2nd", label)
    np.savez(
        tmp_path / "points.npz", class_1=np.argwhere(label == 1).astype(np.int32), class_2=np.zeros((0, 3), np.int32)
    )
    files = (tmp_path / "image.b2nd", tmp_path / "label.b2nd")
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
    stored = case.image_part()[0, x : x + 4, y : y + 4, z : z + 4]
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


def test_what_each_process_reads_makes_up_the_augmented_batch(case: PreparedCase) -> None:
    """Two processes that share a volume along Y; padding is agreed on by both."""
    augmentation = AugmentationConfig.model_validate(
        {"affine": {"probability": 1}, "flip": {"probability": 0.5}, "noise": {}, "elastic": {"probability": 1}}
    )
    source = Sampler(
        [case],
        patch=None,
        batch=2,
        stride=(4, 4, 4),
        seed=0,
        stage=0,
        positive=0,
        class_balanced=True,
        augmentation=augmentation,
    )

    def batch(*rows: int) -> MicroBatch:
        def region(shape: tuple[int, ...]) -> tuple[slice, ...]:
            return (slice(0, shape[2]), slice(*rows), slice(0, shape[4]))

        return MicroBatch(source, source.draws(0), torch.float32, torch.device("cpu"), region if rows else None)

    whole, low, high = batch(), batch(0, 3), batch(3, 8)
    assert torch.equal(torch.cat([low.image(), high.image()], 3), whole.image())
    assert torch.equal(torch.cat([low.target(), high.target()], 2), whole.target())
    masks = [part.valid() for part in (whole, low, high)]
    assert all(mask is not None for mask in masks)
    assert torch.equal(torch.cat(masks[1:], 2), masks[0])  # type: ignore[arg-type]
    assert low.shape == whole.shape == (2, 1, 8, 8, 4)


def test_what_is_read_ahead_is_what_would_be_read(case: PreparedCase) -> None:
    """The last step used the image of the first micro-batch and the labels and the mask of the second."""
    source = sampler(case, None)

    def batches(step: int) -> list[MicroBatch]:
        parts = cut(source.draws(step), 2)
        return [MicroBatch(source, part, torch.float32, torch.device("cpu")) for part in parts]

    ahead = ReadAhead(on=True)
    last = batches(0)
    assert ahead.take((0, 0)) is None
    ahead.announce((0, 0), last)
    assert not any(batch._ahead for batch in last), "nothing is known of what will be used"
    last[0].image()
    last[1].target()
    last[1].valid()
    ahead.note_used(last)
    ahead.announce((0, 1), batches(1))
    assert ahead.take((1, 1)) is None, "another step"
    ahead.announce((0, 1), batches(1))
    found, plain = ahead.take((0, 1)), batches(1)
    assert found is not None
    assert [sorted(batch._ahead) for batch in found] == [["image"], ["label", "valid"]]
    for batch, wanted in zip(found, plain, strict=True):
        for _ in range(2):  # the second time, it is read
            assert torch.equal(batch.image(), wanted.image())
            assert torch.equal(batch.target(), wanted.target())
            assert torch.equal(batch.valid(), wanted.valid())  # type: ignore[arg-type]
        assert not batch._ahead
    assert not ReadAhead(on=False).on


def test_a_fault_of_reading_ahead_appears_where_the_voxels_are_used(case: PreparedCase) -> None:
    source = sampler(case, (4, 4, 4))
    batch = MicroBatch(source, source.draws(0), torch.float32, torch.device("cpu"))
    batch.used.add("image")
    ahead = ReadAhead(on=True)
    ahead.note_used([batch])
    case.image.unlink()
    ahead.announce((0, 0), [batch])
    with pytest.raises(UserError, match="cannot be read"):
        batch.image()

"""Whole-volume and sliding-window segmentation through a model equal the bare network; files keep their grid."""

from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import nn

from lampseg.config import Config, parse_config
from lampseg.data import image_to_network, labels_to_grid, read_volume
from lampseg.errors import UserError
from lampseg.inference.predictor import Predictor, output_name
from lampseg.inference.segment import SlidingWindow, sliding_labels
from lampseg.networks import UNet
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.world import World, join, leave
from lampseg.partition import make_plan
from lampseg.training.validation import pad_volume, padded_shape

STRIDE = (4, 4, 4)
CLASSES = 3


@pytest.fixture
def world() -> Iterator[World]:
    yield join(device="cpu", timeout=30)
    leave()


@pytest.fixture
def config() -> Config:
    return parse_config(
        {
            "network": {"name": "unet", "filters": 4, "depth": 1, "norm": "instance"},
            "data": {"root": "unused", "window": [-100, 100], "spacing": [2, 2, 2]},
            "curriculum": [{"patch": "whole", "steps": 1}],
        }
    )


def small_unet() -> nn.Module:
    torch.manual_seed(0)
    return UNet(out_channels=CLASSES, filters=4, depth=1, norm="instance").eval()


def model_of(network: nn.Module, world: World) -> ParallelModel:
    return ParallelModel(network, make_plan(network, shape=(1, 1, 16, 16, 16)), world=world, training=False)


def write_image(path: Path, shape: tuple[int, int, int], seed: int) -> None:
    """An oblique, left-handed image with anisotropic voxels."""
    rng = np.random.default_rng(seed)
    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.5, 2.0, 2.5])
    affine[:3, 3] = [30, -20, 7]
    voxels = rng.normal(0, 60, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def test_predictions_are_those_of_the_bare_network_on_the_images_grid(
    tmp_path: Path, world: World, config: Config
) -> None:
    paths = [tmp_path / "a.nii.gz", tmp_path / "b.nii"]
    write_image(paths[0], (21, 18, 15), 1)
    write_image(paths[1], (17, 25, 12), 2)
    predictor = Predictor(model_of(small_unet(), world), config=config, channels=1, stride=STRIDE)
    written = list(predictor.predict(paths, out=tmp_path / "out"))
    assert [p.output.name for p in written] == ["a.nii.gz", "b.nii.gz"]
    for prediction in written:
        volume = read_volume(prediction.image)
        array, info = image_to_network(volume, data=config.data)
        shape = padded_shape(array.shape[1:], STRIDE, channels=1)
        x = pad_volume(array, shape, device=torch.device("cpu"), dtype=torch.float32)
        with torch.no_grad():
            labels = small_unet()(x)[0].argmax(0).numpy().astype(np.uint8)
        _, a, b, c = array.shape
        expected = labels_to_grid(np.ascontiguousarray(labels[:a, :b, :c]), info)
        found = nibabel.load(prediction.output)
        np.testing.assert_array_equal(np.asarray(found.dataobj), expected)
        np.testing.assert_allclose(found.affine, volume.affine, atol=1e-5)
        assert np.asarray(found.dataobj).dtype.kind in "iu"
        assert len(np.unique(expected)) > 1, "a constant map would hide a flipped grid"


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_sliding_windows_are_monais(world: World, overlap: float) -> None:
    x = torch.randn(1, 1, 20, 16, 24, generator=torch.Generator().manual_seed(1))
    window = SlidingWindow((8, 8, 12), overlap, batch=3)
    with torch.no_grad():
        found = sliding_labels(model_of(small_unet(), world), x, window)
        bare = SlidingWindowInferer(roi_size=window.size, sw_batch_size=1, overlap=overlap, mode="gaussian")
        expected = bare(x, small_unet())
    assert found is not None
    assert isinstance(expected, torch.Tensor)
    torch.testing.assert_close(found, expected[0].argmax(0))


def test_a_corrupt_image_leaves_the_earlier_ones_complete(tmp_path: Path, world: World, config: Config) -> None:
    write_image(tmp_path / "a.nii.gz", (16, 16, 16), 1)
    (tmp_path / "b.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:500])
    predictor = Predictor(model_of(small_unet(), world), config=config, channels=1, stride=STRIDE)
    with pytest.raises(UserError, match=r"b\.nii\.gz"):
        list(predictor.predict([tmp_path / "a.nii.gz", tmp_path / "b.nii.gz"], out=tmp_path / "out"))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["a.nii.gz"]


def test_windows_must_fit_the_stride(tmp_path: Path, world: World, config: Config) -> None:
    write_image(tmp_path / "a.nii.gz", (16, 16, 16), 1)
    predictor = Predictor(model_of(small_unet(), world), config=config, channels=1, stride=STRIDE)
    with pytest.raises(UserError, match="multiple"):
        list(predictor.predict([tmp_path / "a.nii.gz"], out=tmp_path / "out", window=SlidingWindow((6, 8, 8))))
    with pytest.raises(UserError, match="overlap"):
        SlidingWindow((8, 8, 8), overlap=1.0)


@pytest.mark.parametrize(
    ("image", "name"),
    [("x.nii", "x.nii.gz"), ("x.nii.gz", "x.nii.gz"), ("x.y.nii.gz", "x.y.nii.gz"), ("x_0000.nii", "x_0000.nii.gz")],
)
def test_output_name(image: str, name: str) -> None:
    assert output_name(Path("folder") / image) == name

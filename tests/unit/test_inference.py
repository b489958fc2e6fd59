"""Whole-volume and sliding-window segmentation through a model equal the bare network; files keep their grid."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from lampseg.config import DataConfig
from lampseg.data import image_to_network, labels_to_grid, read_volume
from lampseg.data.back_to_grid import labels_in, lines_of
from lampseg.errors import PartlyDone, UserError
from lampseg.inference import Mirror, Predictor, Result, SlidingWindow, read_probabilities, segment, segment_files
from lampseg.inference.inputs import InputCase
from lampseg.inference.model import Alone
from lampseg.inference.padding import pad_volume, padded_shape
from lampseg.inference.windows import sliding_labels, window_scores
from lampseg.networks import UNet
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.world import World, join, leave
from lampseg.partition import make_plan

STRIDE = (4, 4, 4)
CLASSES = ("background", "Eye_L", "Eye_R")
DATA = DataConfig(root=Path("unused"), window=(-100, 100), spacing=(2, 2, 2))
CPU = torch.device("cpu")


@pytest.fixture
def world() -> Iterator[World]:
    yield join(device="cpu", timeout=30)
    leave()


def small_unet(channels: int = 1) -> nn.Module:
    torch.manual_seed(0)
    return UNet(in_channels=channels, out_channels=len(CLASSES), filters=4, depth=1, norm="instance").eval()


def alone(network: nn.Module) -> Alone:
    return Alone(network, device=CPU)


def predictor_of(model: Any, **more: Any) -> Predictor:
    return Predictor(model, **{"data": DATA, "channels": 1, "stride": STRIDE, **more})


def model_of(network: nn.Module, world: World) -> ParallelModel:
    return ParallelModel(network, make_plan(network, shape=(1, 1, 16, 16, 16)), world=world, training=False)


def write_image(path: Path, shape: tuple[int, ...], seed: int) -> Path:
    """An oblique, left-handed image with anisotropic voxels."""
    rng = np.random.default_rng(seed)
    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([-1.5, 2.0, 2.5])
    affine[:3, 3] = [30, -20, 7]
    voxels = rng.normal(0, 60, shape).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return path


def written(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


def network_input(path: Path) -> tuple[Tensor, Any]:
    array, info = image_to_network(read_volume(path), data=DATA)
    shape = padded_shape(array.shape[1:], STRIDE, channels=len(array))
    return pad_volume(array, shape, device=CPU, dtype=torch.float32), info


def on_input_grid(scores: Tensor, info: Any) -> np.ndarray:
    """Labels of scores (C, X, Y, Z), by the interpolation that test_back_to_grid.py checks, in one piece."""
    lines = lines_of(info)
    assert lines is not None
    everything = tuple(slice(0, size) for size in info.input_shape)
    inside = scores[(slice(None), *(slice(0, size) for size in info.shape))]
    return labels_in(everything, lines, lambda box: inside[(slice(None), *box)])


@torch.no_grad()
def averaged(network: nn.Module, x: Tensor, axes: tuple[tuple[int, ...], ...], order: list[int]) -> Tensor:
    """By hand: the mean of the softmax over flips; `order` renames the classes of those along x."""
    total = torch.zeros(1)
    for flip in axes:
        dims = [axis + 2 for axis in flip]
        found = network(x.flip(dims)).softmax(1).flip(dims)
        total = total + (found[:, order] if 0 in flip else found)
    return total[0] / len(axes)


def test_predictions_are_those_of_the_bare_network_on_the_images_grid(tmp_path: Path, world: World) -> None:
    paths = [write_image(tmp_path / "a.nii.gz", (21, 18, 15), 1), write_image(tmp_path / "b.nii", (17, 25, 12), 2)]
    predictor = predictor_of(model_of(small_unet(), world))
    found = list(predictor.predict(paths, out=tmp_path / "out", result=Result(CLASSES)))
    assert [p.output.name for p in found] == ["a.nii.gz", "b.nii.gz"]
    assert predictor.faults == {}
    for prediction in found:
        x, info = network_input(prediction.image)
        with torch.no_grad():
            expected = on_input_grid(small_unet()(x)[0], info)
        labels = written(prediction.output)
        np.testing.assert_array_equal(labels, expected)
        np.testing.assert_allclose(nibabel.load(prediction.output).affine, read_volume(prediction.image).affine)
        assert labels.dtype.kind in "iu"
        assert len(np.unique(expected)) > 1, "a constant map would hide a flipped grid"


def test_labels_can_be_resampled_instead(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.nii.gz", (21, 18, 15), 1)
    predictor = predictor_of(alone(small_unet()))
    (made,) = predictor.predict([path], out=tmp_path / "out", result=Result(CLASSES, resample="labels"))
    x, info = network_input(path)
    with torch.no_grad():
        labels = small_unet()(x)[0].argmax(0)
    found = written(made.output)
    a, b, c = info.shape
    np.testing.assert_array_equal(found, labels_to_grid(labels[:a, :b, :c].numpy(), info))
    (other,) = predictor.predict([path], out=tmp_path / "logits", result=Result(CLASSES))
    assert 0 < (written(other.output) != found).mean() < 0.5


@pytest.mark.parametrize("overlap", [0.0, 0.5])
@pytest.mark.parametrize(("batch", "mode"), [(1, "gaussian"), (3, "gaussian"), (2, "constant")])
def test_sliding_windows_are_monais(world: World, overlap: float, batch: int, mode: str) -> None:
    x = torch.randn(1, 1, 20, 16, 28, generator=torch.Generator().manual_seed(1))
    window = SlidingWindow((8, 8, 12), overlap, mode=mode, batch=batch)
    with torch.no_grad():
        bare = SlidingWindowInferer(roi_size=window.size, sw_batch_size=1, overlap=overlap, mode=mode)
        expected = bare(x, small_unet())
    assert isinstance(expected, Tensor)
    model = model_of(small_unet(), world)
    parts = list(window_scores(model, (1, 1, 20, 16, 28), window, load=lambda place, _: x[(..., *place)]))
    assert len(parts) > 1
    torch.testing.assert_close(torch.cat([part.values for part in parts], dim=1), expected[0])
    found = sliding_labels(model, x, window)
    assert found is not None
    assert (found == expected[0].argmax(0)).float().mean() > 0.999


def test_windows_larger_than_the_volume(world: World) -> None:
    x = torch.randn(1, 1, 8, 20, 8, generator=torch.Generator().manual_seed(1))
    found = sliding_labels(model_of(small_unet(), world), x, SlidingWindow((16, 16, 12), 0.5))
    assert found is not None
    assert found.shape == (8, 20, 8)
    filled = torch.nn.functional.pad(x, (0, 4, 0, 0, 0, 8))
    expected = sliding_labels(alone(small_unet()), filled, SlidingWindow((16, 16, 12), 0.5))
    assert expected is not None
    torch.testing.assert_close(found, expected[:8, :, :8])


def test_few_planes_of_a_sliding_window_exist_at_a_time() -> None:
    """Not classes x volume: one row of windows and what of it is done."""
    x = torch.randn(1, 1, 96, 8, 8)
    window = SlidingWindow((8, 8, 8), 0.5)
    parts = window_scores(alone(small_unet()), (1, 1, 96, 8, 8), window, load=lambda place, _: x[(..., *place)])
    assert [tile.values.shape[1] for tile in parts] == [4] * 22 + [8]


@pytest.mark.parametrize("windows", [False, True])
def test_mirrored_is_the_mean_by_hand(windows: bool, world: World) -> None:
    network = small_unet()
    x = torch.randn(1, 1, 8, 12, 16, generator=torch.Generator().manual_seed(2))
    axes = ((), (0,), (2,), (0, 2))
    expected = averaged(network, x, axes, [0, 2, 1])
    mirror = Mirror((0, 2), swaps=((1, 2),))
    window = (8, 12, 16) if windows else None
    for plan, where in ((None, None), (make_plan(network, shape=(1, 1, 16, 16, 16)), world)):
        found = segment(
            small_unet(), x[0], stride=STRIDE, window=window, mirror=mirror, probabilities=True, plan=plan, world=where
        )
        torch.testing.assert_close(found, expected)
    unswapped = segment(network, x[0], stride=STRIDE, mirror=(0, 2), probabilities=True)
    torch.testing.assert_close(unswapped, averaged(network, x, axes, [0, 1, 2]))
    assert not torch.allclose(unswapped, expected)


def test_mirrored_files(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.nii.gz", (21, 18, 15), 1)
    predictor = predictor_of(alone(small_unet()))
    mirror = Mirror((1,))
    result = Result(CLASSES, probabilities=True)
    (tmp_path / "out").mkdir()
    (made,) = predictor.predict([path], out=tmp_path / "out", result=result, mirror=mirror)
    x, info = network_input(path)
    expected = averaged(small_unet(), x, ((), (1,)), [0, 1, 2])
    np.testing.assert_array_equal(written(made.output), on_input_grid(expected, info))
    kept = read_probabilities(tmp_path / "out" / "a.probabilities.npz")
    inside = expected[(slice(None), *(slice(0, size) for size in info.shape))]
    np.testing.assert_allclose(kept, inside.numpy(), atol=5e-4)


@pytest.mark.parametrize("window", [None, SlidingWindow((8, 8, 8), 0.5)])
def test_probabilities_on_the_networks_grid(window: SlidingWindow | None, tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.nii.gz", (31, 18, 15), 1)
    predictor = predictor_of(alone(small_unet()))
    out = tmp_path / "out"
    out.mkdir()
    list(predictor.predict([path], out=out, result=Result(CLASSES, probabilities=True), window=window))
    assert sorted(each.name for each in out.iterdir()) == ["a.nii.gz", "a.probabilities.npz"]
    x, info = network_input(path)
    a, b, c = info.shape
    expected = segment(small_unet(), x[0], window=window, probabilities=True)
    assert expected is not None
    whole = read_probabilities(out / "a.probabilities.npz")
    assert whole.dtype == np.float16
    np.testing.assert_allclose(whole, expected[:, :a, :b, :c].numpy(), atol=5e-4)
    np.testing.assert_array_equal(read_probabilities(out / "a.probabilities.npz", slice(7, 19)), whole[:, 7:19])
    np.testing.assert_array_equal(read_probabilities(out / "a.probabilities.npz", slice(20, 3)), whole[:, :0])
    with np.load(out / "a.probabilities.npz") as archive:
        np.testing.assert_allclose(archive["affine"], info.affine)
        np.testing.assert_allclose(archive["input_affine"], info.input_affine)
        assert tuple(archive["classes"]) == CLASSES
        assert (tuple(archive["shape"]), tuple(archive["input_shape"])) == (info.shape, (31, 18, 15))
    with pytest.raises(UserError, match=r"a\.nii\.gz: not a file of probabilities"):
        read_probabilities(path)


def test_the_largest_component_is_kept_on_the_images_grid(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.nii.gz", (21, 18, 15), 1)
    from scipy import ndimage

    touching = np.ones((3, 3, 3))
    predictor = predictor_of(alone(small_unet()))
    (raw,) = predictor.predict([path], out=tmp_path / "raw", result=Result(CLASSES))
    (made,) = predictor.predict([path], out=tmp_path / "one", result=Result(CLASSES, largest=(1,)))
    before, after = written(raw.output), written(made.output)
    assert ndimage.label(before == 1, touching)[1] > 1
    parts, count = ndimage.label(after == 1, touching)
    assert count == 1
    assert (parts > 0).sum() == np.bincount(ndimage.label(before == 1, touching)[0].ravel())[1:].max()
    np.testing.assert_array_equal(before == 2, after == 2)


def test_several_channels(tmp_path: Path) -> None:
    """From one file that holds both, or from one file each; another number is a fault that names it."""
    both = write_image(tmp_path / "both.nii.gz", (12, 12, 10, 2), 1)
    voxels, affine = np.asarray(nibabel.load(both).dataobj), nibabel.load(both).affine
    parts = tuple(tmp_path / f"parts_{n:04d}.nii.gz" for n in range(2))
    for n, part in enumerate(parts):
        nibabel.save(nibabel.Nifti1Image(voxels[..., n], affine), part)
    predictor = predictor_of(alone(small_unet(2)), channels=2)
    cases = [InputCase("both", (both,)), InputCase("parts", parts), InputCase("half", parts[:1])]
    made = list(predictor.predict(cases, out=tmp_path / "out", result=Result(CLASSES)))
    first, second = (written(each.output) for each in made)
    np.testing.assert_array_equal(first, second)
    assert predictor.faults.keys() == {"half"}
    assert "parts_0000.nii.gz: 1 channel, but the network takes 2; give one file" in predictor.faults["half"]


def test_a_corrupt_image_stops_no_other(tmp_path: Path, world: World) -> None:
    write_image(tmp_path / "a.nii.gz", (16, 16, 16), 1)
    (tmp_path / "b.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:500])
    write_image(tmp_path / "c.nii.gz", (1, 1, 1), 1)
    write_image(tmp_path / "d.nii.gz", (17, 16, 16), 1)
    predictor = predictor_of(model_of(small_unet(), world))
    images = [tmp_path / f"{name}.nii.gz" for name in "bacd"]
    made = list(predictor.predict(images, out=tmp_path / "out", result=Result(CLASSES)))
    assert [prediction.output.name for prediction in made] == ["a.nii.gz", "d.nii.gz"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.nii.gz", "d.nii.gz"]
    assert predictor.faults.keys() == {"b", "c"}
    assert "b.nii.gz: damaged or cut short" in predictor.faults["b"]
    assert "c.nii.gz: [4, 4, 4] voxels shrink to a single one" in predictor.faults["c"]


class Diverged(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, x * float("nan")], dim=1)


def test_a_network_that_has_diverged_is_no_background(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz", (16, 16, 16), 1)
    predictor = predictor_of(alone(Diverged()))
    result = Result(("background", "organ"), probabilities=True)
    (tmp_path / "out").mkdir()
    assert list(predictor.predict([tmp_path / "a.nii.gz"], out=tmp_path / "out", result=result)) == []
    assert "a.nii.gz: the network's output is not a number" in predictor.faults["a"]
    assert list((tmp_path / "out").iterdir()) == []


def test_windows_must_fit_the_stride(tmp_path: Path) -> None:
    write_image(tmp_path / "a.nii.gz", (16, 16, 16), 1)
    predictor = predictor_of(alone(small_unet()))
    with pytest.raises(UserError, match="multiple"):
        list(
            predictor.predict(
                [tmp_path / "a.nii.gz"], out=tmp_path, result=Result(CLASSES), window=SlidingWindow((6, 8, 8))
            )
        )
    with pytest.raises(UserError, match="overlap"):
        SlidingWindow((8, 8, 8), overlap=1.0)
    with pytest.raises(UserError, match="batch"):
        SlidingWindow((8, 8, 8), batch=0)


def test_from_python_with_any_network(tmp_path: Path) -> None:
    """An array of any size, and files; the network is used as it is."""
    network = nn.Sequential(nn.Conv3d(1, 3, 3, padding=1), nn.Dropout(0.9)).train()
    image = torch.randn(1, 9, 7, 6, generator=torch.Generator().manual_seed(1))
    found = segment(network, image)
    assert found is not None
    with torch.no_grad():
        expected = network.eval()(image[None])[0].argmax(0)
    torch.testing.assert_close(found, expected)
    assert torch.equal(segment(network, image.numpy(), window=(9, 7, 6)), expected)  # type: ignore[arg-type]
    (tmp_path / "in").mkdir()
    write_image(tmp_path / "in" / "a.nii.gz", (9, 9, 9), 1)
    (made,) = segment_files(network, [tmp_path / "in"], out=tmp_path, data=DATA, classes=CLASSES)
    assert made.output == tmp_path / "a.nii.gz"
    with pytest.raises(UserError, match="would overwrite it"):
        segment_files(network, [tmp_path / "in"], out=tmp_path / "in", data=DATA, classes=CLASSES)
    (tmp_path / "in" / "b.nii.gz").write_text("no image")
    with pytest.raises(PartlyDone, match=r"1 of 2 images .*\n.*b\.nii\.gz: not a NIfTI file"):
        segment_files(network, [tmp_path / "in"], out=tmp_path / "again", data=DATA, classes=CLASSES)
    assert (tmp_path / "again" / "a.nii.gz").is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(3, 3, 3)}, r"shape \[3, 3, 3\]; give \(C, X, Y, Z\)"),
        ({"window": (6, 8, 8), "stride": STRIDE}, r"\[6, 8, 8\] is not a multiple of the stride"),
        ({"plan": make_plan(small_unet(), shape=(1, 1, 16, 16, 16))}, "needs the world of its ranks"),
    ],
)
def test_what_segment_refuses(change: dict[str, Any], message: str) -> None:
    arguments = {"image": torch.zeros(1, 8, 8, 8), **change}
    with pytest.raises(UserError, match=message):
        segment(small_unet(), arguments.pop("image"), **arguments)


def test_slab_plans_are_for_files(world: World) -> None:
    plan = make_plan(small_unet(), shape=(1, 1, 16, 16, 16))
    slabs = replace(plan, choices=replace(plan.choices, slabs=(2, 1, 1)))
    with pytest.raises(UserError, match="plans of slabs are for files"):
        segment(small_unet(), torch.zeros(1, 8, 8, 8), plan=slabs, world=world)

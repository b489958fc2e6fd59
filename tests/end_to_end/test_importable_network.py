"""A network of another library, by its import path: planned, trained, and predicted with on one and two devices."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from lampseg.config import load_config
from lampseg.data import Dataset
from lampseg.networks import build_network
from tests.end_to_end.command import lampseg, losses, metrics, train
from tests.end_to_end.small import refused

pytestmark = pytest.mark.timeout(600)

DYN_UNET = {
    "name": "monai.networks.nets.DynUNet",
    "kwargs": {
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [4, 8, 16],
        "deep_supervision": True,
        "deep_supr_num": 1,
    },
}
PLAIN_CONV_UNET = {
    "name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "kwargs": {
        "n_stages": 3,
        "features_per_stage": [4, 6, 8],
        "conv_op": "torch.nn.Conv3d",
        "kernel_sizes": 3,
        "strides": [1, 2, [2, 2, 1]],
        "n_conv_per_stage": 1,
        "n_conv_per_stage_decoder": 1,
        "norm_op": "torch.nn.InstanceNorm3d",
        "norm_op_kwargs": {"affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
        "deep_supervision": True,
    },
}
UNETR = {
    "name": "monai.networks.nets.UNETR",
    "kwargs": {"img_size": [48, 48, 48], "feature_size": 2, "hidden_size": 12, "mlp_dim": 16, "num_heads": 2},
}
BASIC_UNET = {"name": "monai.networks.nets.BasicUNet", "kwargs": {"spatial_dims": 3, "features": [4, 4, 8, 8, 16, 4]}}
SHORT = ("curriculum.0.steps=2", "curriculum.1.steps=2", "curriculum.2.steps=2")


def with_network(config: Path, folder: Path, network: dict[str, object]) -> Path:
    tree = yaml.safe_load(config.read_text()) | {"network": network}
    path = folder / f"{str(network['name']).rpartition('.')[2]}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture(scope="module")
def dyn_unet(config: Path, folder: Path) -> Path:
    """A configuration: DynUNet with deep supervision."""
    return with_network(config, folder, DYN_UNET)


@pytest.fixture(scope="module")
def run(dyn_unet: Path, folder: Path) -> Path:
    """Trained on two devices."""
    return train(dyn_unet, folder / "dyn-unet", *SHORT, devices=2)


@pytest.fixture(scope="module")
def on_one(run: Path, phantom: Dataset) -> list[np.ndarray]:
    """Predicted on one device."""
    return predict(run, phantom, "on-one", "--devices", "1")


def predict(run: Path, phantom: Dataset, name: str, *options: str) -> list[np.ndarray]:
    """The label maps of the test and one training image, each checked to lie on its image's grid."""
    out = run.with_name(f"{run.name}-{name}")
    images = [phantom.test[0].image, phantom.training[0].image]
    lampseg("predict", "--run", run, "--out", out, "--checkpoint", "stage-3", *options, *images)
    record = json.loads((out / "predictions.json").read_text())
    assert [item["output"] for item in record["predictions"]] == [image.name for image in images]
    maps = []
    for image in images:
        scan, found = nib.load(image), nib.load(out / image.name)
        assert found.shape == scan.shape
        np.testing.assert_array_equal(found.affine, scan.affine)
        maps.append(np.asarray(found.dataobj))
    return maps


def test_deep_supervision_gives_the_same_losses(run: Path, dyn_unet: Path, folder: Path) -> None:
    alone = train(dyn_unet, folder / "dyn-unet-on-one", *SHORT, devices=1)
    assert losses(run) == pytest.approx(losses(alone), rel=1e-4)
    assert len(losses(run)) == 6


def test_predictions_do_not_depend_on_the_devices(on_one: list[np.ndarray], run: Path, phantom: Dataset) -> None:
    on_two = predict(run, phantom, "on-two", "--devices", "2")
    for first, second in zip(on_one, on_two, strict=True):
        np.testing.assert_array_equal(first, second)
        assert len(np.unique(first)) > 1


def test_sliding_window_on_two_devices(on_one: list[np.ndarray], run: Path, phantom: Dataset) -> None:
    """Windows see less than the whole, so the labels differ, though not everywhere."""
    sliding = predict(run, phantom, "sliding", "--window", "32", "--overlap", "0.25", "--devices", "2")
    for first, second in zip(on_one, sliding, strict=True):
        assert 0 < (first != second).mean() < 0.5


def test_bfloat16_on_two_devices(config: Path, folder: Path) -> None:
    """BasicUNet, stride 16. Two decimal digits of the loss remain; the weights stay in float32.

    No level has two planes: there torch 2.13 leaves memory of before in the weights' gradient on CPUs with bfloat16.
    """
    path = with_network(config, folder, BASIC_UNET)
    patches = ("curriculum.0.patch=48", "curriculum.0.batch=2", "curriculum.1.patch=48", "curriculum.1.batch=1")
    steps = (*patches, "curriculum.0.steps=2", "curriculum.1.steps=1", "curriculum.2.steps=1")
    exact = train(path, folder / "basic-unet", *steps, devices=1)
    rough = train(
        path, folder / "basic-unet-bfloat16", *steps, "parallel.mode=pipeline", "precision=bfloat16", devices=2
    )
    assert len(losses(rough)) == 4
    assert losses(rough)[:2] == pytest.approx(losses(exact)[:2], rel=2e-2)
    assert losses(rough)[:2] != pytest.approx(losses(exact)[:2], rel=1e-6), "computed in float32"
    weights = load_file(rough / "checkpoints" / "stage-3.safetensors")
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())


def test_plan_as_json(dyn_unet: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What `plan` says beforehand is what `train` recorded, but for the whole volume's size (from headers only)."""
    lampseg("plan", dyn_unet, "--devices", "2", "--json")
    planned = json.loads(capsys.readouterr().out)["plans"]
    recorded = json.loads((run / "plan.json").read_text())["plans"]
    assert len(planned) == 3
    assert planned[:2] == recorded[:2]
    assert [stage["index"] for stage in planned[2]["stages"]] == [0, 1]


def test_nnunets_network_on_two_devices(config: Path, folder: Path, phantom: Dataset) -> None:
    """Its decoder holds its encoder, and every convolution has two names: each is trained, kept and saved once."""
    path = with_network(config, folder, PLAIN_CONV_UNET)
    steps = ("curriculum.0.steps=2", "curriculum.1.steps=1", "curriculum.2.steps=1")
    alone = train(path, folder / "plain-conv-unet-on-one", *steps, devices=1)
    two = train(path, folder / "plain-conv-unet", *steps, devices=2)
    assert losses(two) == pytest.approx(losses(alone), rel=1e-4)
    assert len(losses(two)) == 4
    weights = load_file(two / "checkpoints" / "stage-3.safetensors")
    assert weights.keys() == load_file(alone / "checkpoints" / "stage-3.safetensors").keys()
    network = build_network(load_config(path).network, in_channels=1, out_channels=len(phantom.classes))
    network.load_state_dict(weights)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    for plan in json.loads((two / "plan.json").read_text())["plans"]:
        assert sum(stage["parameters"] for stage in plan["stages"]) == parameters


def test_a_network_of_one_size(config: Path, folder: Path, phantom: Dataset) -> None:
    """A UNETR takes volumes of its img_size: it trains on such patches, and segments whole volumes in such windows."""
    tree = yaml.safe_load(with_network(config, folder, UNETR).read_text())
    tree["curriculum"] = [{"patch": 48, "batch": 1, "steps": 2}]
    path = folder / "unetr.yaml"
    path.write_text(yaml.safe_dump(tree))
    run = train(path, folder / "unetr", devices=2)
    assert len(losses(run)) == 2
    assert [record["validation"] for record in metrics(run) if "validation" in record] != []
    out = folder / "unetr-predicted"
    lampseg("predict", "--run", run, "--out", out, "--devices", "1", phantom.test[0].image)
    assert nib.load(out / phantom.test[0].image.name).shape == nib.load(phantom.test[0].image).shape


def test_a_network_of_one_size_has_no_other_patch(
    config: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = yaml.safe_load(with_network(config, folder, UNETR).read_text())
    tree["curriculum"] = [{"patch": 48, "steps": 2}, {"patch": "whole", "steps": 1}]
    path = folder / "unetr-whole.yaml"
    path.write_text(yaml.safe_dump(tree))
    said = refused(capsys, "plan", path)
    assert "curriculum.1.patch: whole is not possible, the network only takes volumes of [48, 48, 48] voxels" in said

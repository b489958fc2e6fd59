"""Prediction on several processes, in stages, in slabs and by replicas: the files are those of one process."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from lampseg.config import DataConfig
from lampseg.inference import Mirror, Predictor, Result, SlidingWindow, cases_of, read_probabilities
from lampseg.inference.model import Alone
from lampseg.networks import UNet
from lampseg.parallel.mesh import Mesh
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.world import World
from lampseg.partition import make_plan
from tests.end_to_end.small import files_of, save
from tests.ranks import run_ranks, sub_world

pytestmark = pytest.mark.timeout(200)

STRIDE = (2, 2, 2)
CLASSES = ("background", "Eye_L", "Eye_R")
RESULT = Result(CLASSES, probabilities=True, largest=(2,))
WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "mirrored": {"mirror": Mirror((0, 1), ((1, 2),))},
    "windows": {"window": SlidingWindow((8, 8, 8), 0.5, batch=3), "mirror": Mirror((1,))},
    "labels": {"result": replace(RESULT, resample="labels", largest=(), probabilities=False)},
}
SLABS = {"slabs": (2, 1, 1), "slabs along y": (1, 2, 1)}
MADE = {
    "stages": ("whole", "mirrored", "windows", "labels"),
    "replicas": ("whole", "windows"),
    "slabs": ("whole", "mirrored", "labels"),
    "slabs along y": ("mirrored",),
}
TINY = "case2b"
"""An image that is too small for whole passes; windows pad it."""


def network() -> nn.Module:
    torch.manual_seed(3)
    return UNet(out_channels=3, filters=4, depth=1, norm="instance", stem_stride=1).double().eval()


def data_of(folder: Path) -> DataConfig:
    return DataConfig(root=folder, window=(-100, 100), spacing=(1.5, 1.2, 2))


def predict(model: Any, folder: Path, out: Path, ways: Sequence[str]) -> dict[str, Any]:
    """Leaves a folder of results for every way; returns what this rank yielded and what it knows of faults."""
    predictor = Predictor(model, data=data_of(folder), channels=1, stride=STRIDE, precision="float64")
    told = {}
    for way in ways:
        options = WAYS[way]
        (out / way).mkdir(parents=True, exist_ok=True)
        groups: list[int] = []
        arguments = {"result": RESULT, **options, "out": out / way, "on_group": groups.append}
        made = [prediction.output.name for prediction in predictor.predict(cases_of([folder / "in"]), **arguments)]
        told[way] = (made, sorted(predictor.faults), sum(groups))
    return told


def on_two(rank: int, folder: Path) -> dict[str, Any]:
    world = sub_world(2)
    assert world is not None
    told = {}
    plan = make_plan(network(), shape=(1, 1, 16, 16, 16), devices=2, precision="float64", training=False)
    replicas = make_plan(network(), shape=(1, 1, 16, 16, 16), precision="float64", training=False)
    choices = replace(replicas.choices, replicas=2, micro_batches=2)
    plans = {"stages": plan, "replicas": replace(replicas, choices=choices)}
    plans |= {name: replace(replicas, choices=replace(replicas.choices, slabs=slabs)) for name, slabs in SLABS.items()}
    for name, made in plans.items():
        model = ParallelModel(network(), made, world=world, training=False, stride=STRIDE)
        told[name] = predict(model, folder, folder / name, MADE[name])
        world.gather(None)
    return told


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one process and of two; among the images are two faulty ones."""
    folder = tmp_path_factory.mktemp("ranks")
    rng = np.random.default_rng(0)
    for n in range(3):
        affine = np.diag([-1.0, 1.1, 0.8 + n, 1])
        shape = (21 - n, 17, 22 + 2 * n)
        save(folder / f"in/case{n}.nii.gz", rng.normal(0, 60, shape).astype(np.float32), affine)
    (folder / "in/case1b.nii.gz").write_text("no image")
    save(folder / "in/case2b.nii.gz", np.zeros((1, 1, 1), np.float32))
    alone = Alone(network(), device=torch.device("cpu"), precision="float64")
    told = {"one": [predict(alone, folder, folder / "one", tuple(WAYS))]}
    for rank in run_ranks(on_two, 2, folder, timeout=150):
        for name, found in rank.items():
            told.setdefault(name, []).append(found)
    (folder / "told.json").write_text(json.dumps(told))
    return folder


def good(way: str) -> list[str]:
    return sorted([*(f"case{n}" for n in range(3)), *([TINY] if way == "windows" else [])])


@pytest.mark.parametrize(("name", "way"), [(name, way) for name, ways in MADE.items() for way in ways])
def test_the_same_as_one_process(name: str, way: str, folder: Path) -> None:
    files = files_of(folder / name / way)
    suffixes = (".nii.gz",) if way == "labels" else (".nii.gz", ".probabilities.npz")
    assert files == sorted(f"{case}{suffix}" for case in good(way) for suffix in suffixes)
    for file in files:
        one, two = folder / "one" / way / file, folder / name / way / file
        if file.endswith(".npz"):
            np.testing.assert_allclose(read_probabilities(two), read_probabilities(one), atol=1e-3)
            continue
        expected, found = (np.asarray(nibabel.load(path).dataobj) for path in (one, two))
        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(expected)) > 1 or file.startswith(TINY)


@pytest.mark.parametrize("name", MADE)
def test_all_ranks_agree_on_the_faults(name: str, folder: Path) -> None:
    told = json.loads((folder / "told.json").read_text())[name]
    for way in told[0]:
        both = [told[rank][way] for rank in range(2)]
        assert sorted([*both[0][0], *both[1][0]]) == [f"{case}.nii.gz" for case in good(way)], "each is yielded once"
        assert set(both[0][1]) | set(both[1][1]) == ({"case1b"} if way == "windows" else {"case1b", TINY})
        assert "case1b" in both[0][1]
        assert "case1b" in both[1][1]
        assert both[0][2] == both[1][2] == 5, "both hear of five images"


def test_a_pipeline_is_filled(folder: Path) -> None:
    """As many images go through together as keep its devices busy; flips count as passes."""
    model = Alone(network(), device=torch.device("cpu"))
    world = World(0, 4, torch.device("cpu"), None, None)  # type: ignore[arg-type]
    predictor = Predictor(model, data=data_of(folder), channels=1, stride=STRIDE)
    for mesh, mirror, expected in (
        (Mesh(world, 1, 1), Mirror(), 1),
        (Mesh(world, 1, 2), Mirror(), 8),
        (Mesh(world, 2, 2), Mirror(), 16),
        (Mesh(world, 1, 2), Mirror((0, 1, 2)), 1),
        (Mesh(world, 1, 2, sharing=2), Mirror(), 1),
        (Mesh(world, 2, 1), Mirror(), 2),
    ):
        model.mesh = mesh
        assert predictor._together(None, mirror) == expected
        assert predictor._together(SlidingWindow((8, 8, 8)), mirror) == mesh.replicas

"""Shared by the end-to-end tests: one small phantom, one configuration, and the same training on 1, 2 and 3 devices."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lampseg.data import Dataset, write_phantom
from lampseg.parallel import launch
from tests.end_to_end import warm_workers
from tests.end_to_end.command import train
from tests.once import once, shared_folder

CURRICULUM = [
    {"patch": 16, "batch": 4, "steps": 8, "lr": 1e-3},
    {"patch": 32, "batch": 2, "steps": 7, "lr": 1e-3},
    {"patch": "whole", "batch": 1, "steps": 5, "lr": 5e-4},
]


@pytest.fixture(scope="module", autouse=True)
def _warm_workers() -> Iterator[None]:
    """A command that runs in the test's process starts warm workers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "elastic_launch", warm_workers.elastic_launch)
        yield


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds the session's phantom and runs; all its processes have the same, so that each run is made once."""
    return shared_folder(tmp_path_factory, "end_to_end")


@pytest.fixture(scope="session")
def phantom(folder: Path) -> Dataset:
    """Four training cases (one of them to validate on) and a test case; their shapes differ."""
    return once(folder, "data", lambda: write_phantom(folder / "data", cases=4, seed=1, test=1, spacing=5))


@pytest.fixture(scope="session")
def config(folder: Path, phantom: Dataset) -> Path:
    """A curriculum of three stages with a small network; what is drawn is changed at random in every way."""
    return once(folder, "config", lambda: write_config(folder / "config.yaml", phantom, folder / "preprocessed"))


@pytest.fixture(scope="session")
def on_one(config: Path, folder: Path) -> Path:
    """The run folder of the training on one device."""
    return once(folder, "on-one", lambda: train(config, folder / "on-one", devices=1))


@pytest.fixture(scope="session")
def on_two(config: Path, folder: Path) -> Path:
    """The run folder of the training on two devices that share the network."""
    return once(folder, "on-two", lambda: train(config, folder / "on-two", "parallel.mode=pipeline", devices=2))


@pytest.fixture(scope="session")
def on_three(config: Path, folder: Path) -> Path:
    """The run folder of the training on three devices that share the network."""
    return once(folder, "on-three", lambda: train(config, folder / "on-three", "parallel.mode=pipeline", devices=3))


def write_config(path: Path, phantom: Dataset, cache: Path) -> Path:
    tree = {
        "network": {"name": "unet", "filters": 4, "norm": "instance", "depth": 2, "stem_stride": 1},
        "data": {"root": str(phantom.root), "window": [-160, 240], "cache": str(cache), "prefetch": "always"},
        "curriculum": CURRICULUM,
        "augmentation": {
            "affine": {"shift_fraction": 0.1},
            "elastic": {"sigma_voxels": [3, 6], "magnitude": [20, 40]},
            "rotate90": {"probability": 0.3},
            "noise": {"low": -0.02, "high": 0.02},
        },
        "checkpoint": {"every_steps": 5},
        "parallel": {"timeout": 60},
    }
    path.write_text(yaml.safe_dump(tree))
    return path

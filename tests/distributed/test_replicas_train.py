"""Training and prediction on two processes, by plans with other replicas and devices in each curriculum stage."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lampseg.config import Config, parse_config
from lampseg.inference.predictor import Predictor, Result
from lampseg.inference.windows import SlidingWindow
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.world import World, join, leave
from lampseg.partition import Plan, make_plan
from lampseg.partition.plan import Choices
from lampseg.training.job import Job, prepare_job
from lampseg.training.trainer import Trainer
from tests.end_to_end.small import tree_for, write_dataset
from tests.ranks import run_ranks, sub_world

pytestmark = pytest.mark.timeout(300)

IMAGES = 3
WINDOW = SlidingWindow((8, 8, 8), 0.25)


def config_in(folder: Path) -> Config:
    return parse_config(
        tree_for(
            folder / "data",
            network={"norm": "batch"},
            data={"cache": str(folder / "cache"), "validation": 0.5},
            curriculum=[{"patch": 8, "batch": 5, "steps": 3}, {"patch": "whole", "batch": 2, "steps": 2}],
            precision="float64",
        )
    )


def plans_of(job: Job, ways: list[tuple[Any, int, int]]) -> tuple[Plan, ...]:
    """Schedule, replicas and devices of each curriculum stage."""
    plans = []
    for (schedule, replicas, devices), edge, count in zip(ways, (8, 16), (5, 2), strict=True):
        stages = devices * (2 if schedule == "v" else 1)
        plan = make_plan(job.build().train(), shape=(1, 1, edge, edge, edge), devices=stages, precision="float64")
        choices = Choices(devices, replicas, count, schedule, plan.cuts, ("all",) * stages)
        plans.append(replace(plan, choices=choices))
    return tuple(plans)


def train_and_predict(world: World, folder: Path, name: str, ways: list[tuple[Any, int, int]]) -> list[list[str]]:
    """Leaves a run folder and predictions; returns what this rank yielded, whole and by windows."""
    config = config_in(folder)
    job = prepare_job(config, cache=folder / "cache")
    run = folder / name
    run.mkdir(exist_ok=True)
    Trainer(job, plans_of(job, ways), world=world, run=run, resume=False).train()
    world.gather(None)  # rank 0 has written the weights
    network = job.build()
    network.load_state_dict(load_file(run / "checkpoints/stage-2.safetensors"))
    network.train()
    model = ParallelModel(network, plans_of(job, ways)[0], world=world)
    predictor = Predictor(model, data=config.data, channels=1, stride=job.stride, precision=config.precision)
    result = Result(("background", "a", "b"))
    images = [folder / f"data/imagesTr/c{n}.nii.gz" for n in range(IMAGES)]
    for kind, window in (("whole", None), ("windows", WINDOW)):
        (run / kind).mkdir(exist_ok=True)
        yield_ = predictor.predict(images, out=run / kind, result=result, window=window)
        written = [prediction.output.name for prediction in yield_]
        (run / f"{kind}-{world.rank}.json").write_text(json.dumps(written))
    return [json.loads((run / f"{kind}-{world.rank}.json").read_text()) for kind in ("whole", "windows")]


def on_two(rank: int, folder: Path) -> list[list[str]]:
    world = sub_world(2)
    assert world is not None
    return train_and_predict(world, folder, "two", [("gpipe", 2, 1), ("v", 1, 2)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a run on one process and one on two."""
    folder = tmp_path_factory.mktemp("replicas")
    write_dataset(folder / "data", cases=4)
    world = join(device="cpu", timeout=60)
    try:
        train_and_predict(world, folder, "one", [("1f1b", 1, 1), ("1f1b", 1, 1)])
    finally:
        leave()
    found = run_ranks(on_two, 2, folder, timeout=180)
    assert [[len(names) for names in rank] for rank in found] == [[2, 2], [1, 1]], "replicas share the images"
    return folder


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]


def test_losses_and_validations_are_those_of_one_process(folder: Path) -> None:
    one, two = lines(folder, "one"), lines(folder, "two")
    assert len(one) == 7, "five steps and two validations"
    for expected, found in zip(one, two, strict=True):
        for key in ("loss", "validation", "dice"):
            if key in expected:
                assert found[key] == pytest.approx(expected[key], rel=1e-9), key


def test_weights_and_statistics_are_those_of_one_process(folder: Path) -> None:
    expected, found = (load_file(folder / name / "checkpoints/stage-2.safetensors") for name in ("one", "two"))
    assert found.keys() == expected.keys()
    assert any("running_var" in key for key in expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor, rtol=1e-8, atol=1e-10, msg=key)


def test_every_image_is_predicted_once(folder: Path) -> None:
    for kind in ("whole", "windows"):
        for n in range(IMAGES):
            one, two = (nibabel.load(folder / name / kind / f"c{n}.nii.gz") for name in ("one", "two"))
            np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(two.dataobj))
            assert len(np.unique(np.asarray(one.dataobj))) > 1


def test_seconds_of_every_stage_are_written(folder: Path) -> None:
    steps = [line for line in lines(folder, "two") if "loss" in line]
    assert [[sorted(rank) for rank in step["stage_seconds"]] for step in steps[:3]] == [[["0"], ["0"]]] * 3
    assert [[sorted(rank) for rank in step["stage_seconds"]] for step in steps[3:]] == [[["0", "3"], ["1", "2"]]] * 2
    for step in steps:
        for rank, busy in zip(step["stage_seconds"], step["busy_seconds"], strict=True):
            computed = [seconds for both in rank.values() for seconds in both]
            assert min(computed) >= 0
            assert 0 < sum(computed) <= busy

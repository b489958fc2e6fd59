"""`lampseg train`: the same losses and weights whatever the devices, schedule and recomputation; a full run folder."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lampseg.config import load_config
from lampseg.data import Dataset
from lampseg.networks import build_network
from lampseg.partition import plans_from_json
from tests.end_to_end.command import TORCHRUN, losses, metrics, steps, succeed, train

pytestmark = pytest.mark.timeout(600)

FLOAT64 = (
    "precision=float64",
    "network.norm=batch",
    "data.validation=0",
    "data.spacing=[8, 8, 8]",
    "curriculum.0.steps=2",
    "curriculum.1.steps=1",
    "curriculum.2.steps=1",
)


def final_weights(run: Path) -> dict[str, Tensor]:
    return load_file(sorted((run / "checkpoints").glob("stage-*.safetensors"))[-1])


def largest_difference(a: Path, b: Path) -> float:
    """Between the final weights of two runs, relative to the largest value of each tensor."""
    first, second = final_weights(a), final_weights(b)
    assert first.keys() == second.keys()
    scales = {name: float(tensor.abs().max().clamp(min=1e-12)) for name, tensor in first.items()}
    return max(float((first[name] - second[name]).abs().max()) / scales[name] for name in first)


def test_one_two_and_three_devices_give_the_same_losses(on_one: Path, on_two: Path, on_three: Path) -> None:
    """Float32, over the three curriculum stages; float32 rounding alone would allow for about 1e-6."""
    assert [record["step"] for record in steps(on_one)] == list(range(1, 21))
    assert [record["stage"] for record in steps(on_one)] == [0] * 8 + [1] * 7 + [2] * 5
    for run in (on_two, on_three):
        assert losses(run) == pytest.approx(losses(on_one), rel=1e-4)
    assert len({round(loss, 6) for loss in losses(on_one)}) > 15, "the losses do not move"


def test_validations_agree(on_one: Path, on_two: Path, on_three: Path) -> None:
    expected = [record for record in metrics(on_one) if "validation" in record]
    assert [record["step"] for record in expected] == [8, 15, 20]
    for run in (on_two, on_three):
        found = [record for record in metrics(run) if "validation" in record]
        for one, other in zip(expected, found, strict=True):
            assert other["validation"] == pytest.approx(one["validation"], abs=1e-4)
            assert other["dice"] == pytest.approx(one["dice"], abs=1e-3)


def test_checkpoints_load_into_the_bare_network_and_agree(
    on_one: Path, on_two: Path, on_three: Path, phantom: Dataset
) -> None:
    network = build_network(load_config(on_two / "config.yaml").network, in_channels=1, out_channels=10)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for name in ("best", "stage-1", "stage-2", "stage-3", "step-00000020/network"):
        network.load_state_dict(load_file(on_two / "checkpoints" / f"{name}.safetensors"))
    after = network.state_dict()
    assert all(not torch.equal(before[name], after[name]) for name in before)
    # RMSprop divides by the root of squared gradients: where those are near 0, rounding grows.
    assert largest_difference(on_one, on_two) < 1e-3
    assert largest_difference(on_one, on_three) < 1e-3


def test_the_optimizer_goes_on_from_stage_to_stage(on_two: Path) -> None:
    """Its numbers follow the weights to the devices that hold them from then on."""
    weights = final_weights(on_two)
    numbers = load_file(on_two / "checkpoints" / "step-00000020" / "optimizer.safetensors")
    assert {name.removeprefix("step:") for name in numbers if name.startswith("step:")} == weights.keys()
    assert all(float(count) == 20 for name, count in numbers.items() if name.startswith("step:"))
    for name, tensor in weights.items():
        assert numbers[f"square_avg:{name}"].shape == tensor.shape


def test_the_run_folder_is_complete(on_two: Path, phantom: Dataset) -> None:
    config = load_config(on_two / "config.yaml")
    assert config.parallel.devices == 2
    assert config.curriculum[1].size == (32, 32, 32)
    plans = plans_from_json((on_two / "plan.json").read_text())
    assert [plan.choices.replicas * plan.choices.devices for plan in plans] == [2, 2, 2]
    for record in steps(on_two):
        assert {"step", "stage", "epoch", "loss", "seconds", "patch", "peak_memory_bytes"} <= record.keys()
        assert len(record["peak_memory_bytes"]) == 2
        assert min(record["peak_memory_bytes"]) > 0
        assert record["seconds"] > 0
    # Three training cases: 4 patches make an epoch of one step, whole volumes one of three.
    assert [record["epoch"] for record in steps(on_two)][:8] == list(range(8))
    assert [record["epoch"] for record in steps(on_two)][15:] == [0, 0, 0, 1, 1]
    assert [record["patch"] for record in steps(on_two)][7:9] == [[16] * 3, [32] * 3]
    validation = [record for record in metrics(on_two) if "validation" in record][-1]
    assert list(validation["dice"]) == list(phantom.classes[1:])
    best = json.loads((on_two / "best.json").read_text())
    scores = {record["step"]: record["validation"] for record in metrics(on_two) if "validation" in record}
    assert scores[best["step"]] == best["validation"] == max(scores.values())
    assert sorted(path.name for path in (on_two / "checkpoints").iterdir()) == [
        "best.safetensors",
        "stage-1-best.safetensors",
        "stage-1.safetensors",
        "stage-2-best.safetensors",
        "stage-2.safetensors",
        "stage-3-best.safetensors",
        "stage-3.safetensors",
        "step-00000015",
        "step-00000020",
    ]
    assert "data:image/" in (on_two / "report.html").read_text()
    assert list((on_two / "tensorboard").glob("events.*"))


def test_the_tensors_take_what_the_plan_predicted(on_two: Path, config: Path, folder: Path) -> None:
    """Within 3% where a step has the planned shapes: patches, not warped; and beside it in the report."""
    options = ("parallel.mode=pipeline", "curriculum.0.steps=2", "curriculum.1.steps=2", "curriculum.2.steps=1")
    pipeline = train(config, folder / "pipeline", *options, "data.validation=0", "augmentation=none", devices=2)
    for run in (on_two, pipeline):
        plans = plans_from_json((run / "plan.json").read_text())
        counted = [record for record in steps(run) if "tensor_peak_bytes" in record and record["stage"] < 2]
        assert {record["stage"] for record in counted} == {0, 1}
        for stage in (0, 1):
            predicted = [load.tensor_bytes for load in plans[stage].devices] * plans[stage].choices.replicas
            # The optimizer's first step makes its numbers: the second and the third are whole.
            for record in [record for record in counted if record["stage"] == stage][1:]:
                found = record["tensor_peak_bytes"]
                if run == pipeline:
                    assert found == pytest.approx(predicted, rel=0.03)
                else:  # a warp may need the mask of padding, which the plan counts, or not
                    assert all(0.9 * most < nbytes < 1.03 * most for nbytes, most in zip(found, predicted))
        for record in steps(run):
            plan = plans[record["stage"]]
            assert record["plan"] == plan.choices.fingerprint
            for rank, seconds in enumerate(record["stage_seconds"]):
                mine = {str(part.index) for part in plan.stages if part.device == rank % plan.choices.devices}
                assert seconds.keys() == mine
        assert "difference" in (run / "report.html").read_text()


def test_float64_with_batch_norm_agrees_whatever_schedule_and_recomputation(config: Path, folder: Path) -> None:
    """To 1e-9, running statistics included: recomputation must not update them twice."""
    reference = train(config, folder / "float64", *FLOAT64, devices=1)
    for schedule, recompute in (("gpipe", "all"), ("1f1b", "all_but_last"), ("v", "none")):
        options = ("parallel.mode=pipeline", f"parallel.schedule={schedule}", f"parallel.recompute={recompute}")
        run = train(config, folder / f"{schedule}-{recompute}", *FLOAT64, *options, devices=2)
        assert losses(run) == pytest.approx(losses(reference), rel=1e-9)
        assert largest_difference(reference, run) < 1e-9
    weights = final_weights(reference)
    assert any(name.endswith("running_mean") for name in weights)
    assert all(t.dtype == torch.float64 for name, t in weights.items() if not name.endswith("num_batches_tracked"))


def test_torchrun_gives_a_world_that_is_joined(config: Path, folder: Path, on_two: Path) -> None:
    """The job of several nodes: torchrun starts the processes, and rank 0 prepares the run.

    Without `--`, torchrun takes `--run` for one of its own options.
    """
    run = folder / "torchrun"
    torchrun = (*TORCHRUN, "--standalone", "--nproc-per-node", "2", "-m", "lampseg", "--")
    overrides = (
        "parallel.mode=pipeline",
        "curriculum.1.steps=2",
        "curriculum.2.steps=1",
        f"data.cache={folder / 'torchrun-cache'}",
    )
    succeed((*torchrun, "train", config, "--run", run, *overrides), folder=folder / "torchrun.log")
    assert len(losses(run)) == 11
    assert losses(run)[:10] == pytest.approx(losses(on_two)[:10], rel=1e-6)
    plans = plans_from_json((run / "plan.json").read_text())
    assert [plan.choices.replicas * plan.choices.devices for plan in plans] == [2, 2, 2]
    assert (run / "report.html").is_file()


def test_weights_that_are_not_finite_are_never_saved(
    config: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The step's loss was still finite; it is the update that overflows."""
    run = folder / "overflow"
    with pytest.raises(SystemExit) as ended:
        train(config, run, "curriculum.0.steps=1", "curriculum.0.lr=3.0e+38", "data.validation=0", devices=1)
    assert ended.value.code == 2
    assert "lower curriculum.0.lr" in capsys.readouterr().err
    assert not list((run / "checkpoints").glob("*"))

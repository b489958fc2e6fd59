"""On a GPU: the same results as on the CPU, and training through the command line. Skipped without CUDA."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from lampseg.data import write_phantom
from lampseg.hardware.device import hardware_for
from lampseg.networks import UNet
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.world import join, leave
from lampseg.partition import make_plan
from lampseg.partition.plan import Choices
from lampseg.partition.schedule import Schedule

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

SHAPES = [(1, 1, 32, 32, 48), (2, 1, 32, 48, 32)]


def one_step(device: str, precision: str, schedule: Schedule = "1f1b") -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of one pipeline step with recompute, in a world of one; two stages by v and interleaved."""
    torch.manual_seed(0)
    network = UNet(out_channels=3, filters=8, depth=2, norm="instance")
    network = network.double() if precision == "float64" else network
    stages = 1 if schedule == "1f1b" else 2
    plan = make_plan(network, shape=SHAPES[0], devices=stages, precision=precision, hardware=hardware_for(kind=device))
    plan = replace(plan, choices=Choices(1, 1, len(SHAPES), schedule, plan.cuts, ("all",) * stages))
    world = join(device=device, timeout=60)
    model = ParallelModel(network, plan, world=world)
    generator = torch.Generator().manual_seed(1)
    dtype = torch.float64 if precision == "float64" else torch.float32
    data = [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]

    def loss(m: int, output: torch.Tensor) -> torch.Tensor:
        target = torch.zeros(output[:, 0].shape, dtype=torch.int64, device=output.device)
        return F.cross_entropy(output.float() if precision == "bfloat16" else output, target) / len(data)

    losses = model.runner.step(SHAPES, load=lambda m: data[m].to(world.device), loss=loss)
    gradients = {name: p.grad.cpu() for name, p in network.named_parameters() if p.grad is not None}
    leave()
    return sum(losses), gradients


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 2e-3)])
def test_equals_cpu(precision: str, tolerance: float) -> None:
    torch.backends.cudnn.allow_tf32 = False
    (loss, gradients), (expected, wanted) = one_step("cuda", precision), one_step("cpu", precision)
    assert abs(loss - expected) <= tolerance * abs(expected)
    scale = max(float(g.abs().max()) for g in wanted.values())
    for name, gradient in wanted.items():
        assert float((gradients[name] - gradient).abs().max()) <= tolerance * scale, name


@pytest.mark.parametrize("schedule", ["v", "interleaved"])
def test_two_stages_on_one_gpu_equal_the_cpu(schedule: Schedule) -> None:
    """What one stage hands to the other stays on the device, and is no message."""
    (loss, gradients), (expected, wanted) = one_step("cuda", "float64", schedule), one_step("cpu", "float64")
    assert abs(loss - expected) <= 1e-9 * abs(expected)
    scale = max(float(g.abs().max()) for g in wanted.values())
    assert gradients.keys() == wanted.keys()
    for name, gradient in wanted.items():
        assert float((gradients[name] - gradient).abs().max()) <= 1e-9 * scale, name


def test_bfloat16_is_near_float32() -> None:
    low, _ = one_step("cuda", "bfloat16")
    full, _ = one_step("cuda", "float32")
    assert abs(low - full) <= 0.02 * abs(full)


@pytest.mark.timeout(300)
def test_training_through_the_command_line(tmp_path: Path) -> None:
    write_phantom(tmp_path / "data", cases=3, seed=0, test=1)
    config = {
        "network": {"name": "unet", "filters": 4, "norm": "instance", "depth": 2},
        "data": {"root": str(tmp_path / "data"), "window": [-160, 240], "validation": 0.34},
        "curriculum": [{"patch": 32, "batch": 2, "steps": 3}, {"patch": "whole", "steps": 2}],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    run = tmp_path / "run"
    command = [sys.executable, "-m", "lampseg", "train", str(tmp_path / "config.yaml"), "--run", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps if "loss" in s] == [1, 2, 3, 4, 5]
    assert all(s["peak_memory_bytes"][0] > 0 for s in steps if "loss" in s)

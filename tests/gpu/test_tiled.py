"""Tiles on a GPU: the same results as the whole on the CPU, and the memory that the plan says. Skipped without CUDA."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lampseg.hardware.device import hardware_for
from lampseg.networks import UNet
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.tiled.forecast import tile_choices, tile_plan
from lampseg.parallel.world import join, leave
from lampseg.partition.costed import cost_network

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")

SHAPE = (2, 1, 48, 32, 40)


def network(precision: str) -> UNet:
    torch.manual_seed(0)
    made = UNet(out_channels=3, filters=8, depth=2, norm="batch", stem_stride=1)
    return made.double() if precision == "float64" else made


def image(precision: str, shape: tuple[int, ...] = SHAPE) -> Tensor:
    dtype = torch.float64 if precision == "float64" else torch.float32
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def loss_of(m: int, output: Any) -> Tensor:
    target = torch.zeros(output[:, 0].shape, dtype=torch.int64, device=output.device)
    return F.cross_entropy(output.float() if output.dtype == torch.bfloat16 else output, target)


@pytest.mark.parametrize(("precision", "tolerance"), [("float64", 1e-9), ("float32", 2e-3)])
def test_equals_the_whole_on_the_cpu(precision: str, tolerance: float) -> None:
    torch.backends.cudnn.allow_tf32 = False
    whole, tiled = network(precision), network(precision)
    expected = loss_of(0, whole(image(precision)))
    expected.backward()
    model = cost_network(tiled, shape=SHAPE, precision=precision, hardware=hardware_for(kind="cuda", name="h100"))
    world = join(device="cuda", timeout=60)
    split = ParallelModel(tiled, tile_plan(model, tile_choices(5, micro_batches=1)), world=world)
    (loss,) = split.runner.step([SHAPE], load=lambda m: image(precision).cuda(), loss=loss_of)
    leave()
    assert loss == pytest.approx(float(expected.detach()), rel=tolerance)
    largest = max(float(p.grad.abs().max()) for p in whole.parameters() if p.grad is not None)
    for found, there in zip(tiled.parameters(), whole.parameters(), strict=True):
        assert found.grad is not None
        torch.testing.assert_close(found.grad.cpu(), there.grad, rtol=0, atol=tolerance * largest)
    torch.testing.assert_close(
        {name: buffer.cpu() for name, buffer in tiled.named_buffers()},
        dict(whole.named_buffers()),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_memory_is_what_the_plan_says(precision: str) -> None:
    shape, made = (1, 1, 128, 96, 96), network(precision)
    model = cost_network(made, shape=shape, precision=precision, hardware=hardware_for(kind="cuda", name="h100"))
    plan = tile_plan(model, tile_choices(16, micro_batches=1))
    world = join(device="cuda", timeout=60)
    split = ParallelModel(made, plan, world=world)
    x = image(precision, shape)
    for _ in range(2):
        made.zero_grad(set_to_none=True)
        torch.cuda.reset_peak_memory_stats()
        split.runner.step([shape], load=lambda m: x.cuda(), loss=lambda m, output: output.float().mean())
    measured = torch.cuda.max_memory_allocated() + plan.devices[0].optimizer_bytes  # there is no optimizer here
    leave()
    planned = plan.devices[0]
    assert 0.9 * planned.tensor_bytes <= measured <= 1.05 * planned.peak_bytes

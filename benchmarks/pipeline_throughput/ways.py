"""Ways to run one training step: ours, torch.distributed.pipelining, torchgpipe, and one process."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.pipeline_throughput.network import Part, unet
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.world import World
from lampseg.partition.plan import Plan

CLASSES = 4
Step = Callable[[], dict[str, float]]
"""Runs one step; says what it knows of itself."""


@dataclass(frozen=True)
class Load:
    """What every way computes in one step."""

    filters: int
    shape: tuple[int, ...]
    """Of one micro-batch."""
    micro_batches: int

    def network(self) -> nn.Sequential:
        return unet(filters=self.filters, classes=CLASSES)

    def inputs(self, micro_batches: int = 1) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        shape = (self.shape[0] * micro_batches, *self.shape[1:])
        return torch.rand(shape, generator=generator)

    def labels(self, micro_batches: int = 1) -> Tensor:
        shape = (self.shape[0] * micro_batches, *self.shape[2:])
        return torch.arange(torch.Size(shape).numel()).view(shape) % CLASSES


def cross_entropy(output: Any, target: Tensor) -> Tensor:
    return F.cross_entropy(output[0] if isinstance(output, tuple | list) else output, target)


def _cleared(network: nn.Module) -> None:
    network.zero_grad(set_to_none=True)


def ours(load: Load, plan: Plan, *, world: World) -> Step:
    """By a plan."""
    model = ParallelModel(load.network(), plan, world=world)
    x, y = load.inputs(), load.labels()

    def step() -> dict[str, float]:
        _cleared(model.network)
        model.runner.step(
            [load.shape] * load.micro_batches,
            load=lambda m: x,
            loss=lambda m, output: cross_entropy(output, y) / load.micro_batches,
        )
        return {"waited": model.runner.waited, "busy": model.runner.busy}

    return step


def torch_pipelining(load: Load, cut: int, schedule: str, *, world: World) -> Step:
    """torch.distributed.pipelining, its stages cut by hand."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    blocks = load.network()
    part = Part(blocks[cut:] if world.rank else blocks[:cut])
    stage = PipelineStage(part, world.rank, 2, world.device)
    kind = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[schedule]
    runs = kind(stage, load.micro_batches, loss_fn=cross_entropy)
    x, y = load.inputs(load.micro_batches), load.labels(load.micro_batches)

    def step() -> dict[str, float]:
        _cleared(part)
        if world.first:
            runs.step(x)
        else:
            runs.step(target=y, losses=[])
        return {}

    return step


def accumulate(load: Load) -> Step:
    """One process, one micro-batch after the other."""
    network, x, y = load.network(), load.inputs(), load.labels()

    def step() -> dict[str, float]:
        _cleared(network)
        for _ in range(load.micro_batches):
            (cross_entropy(network(x), y) / load.micro_batches).backward()
        return {}

    return step


def one_batch(load: Load) -> Step:
    """One process, all samples at once."""
    network, x, y = load.network(), load.inputs(load.micro_batches), load.labels(load.micro_batches)

    def step() -> dict[str, float]:
        _cleared(network)
        cross_entropy(network(x), y).backward()
        return {}

    return step


def gpipe(load: Load, balance: Sequence[int]) -> Step:
    """torchgpipe on two "devices" of the CPU."""
    from torchgpipe import GPipe

    model = GPipe(load.network(), list(balance), devices=["cpu"] * 2, chunks=load.micro_batches, checkpoint="never")
    x, y = load.inputs(load.micro_batches), load.labels(load.micro_batches)

    def step() -> dict[str, float]:
        _cleared(model)
        cross_entropy(model(x), y).backward()
        return {}

    return step


def balanced(load: Load) -> list[int]:
    """How many blocks torchgpipe would give each of two devices, by timing them on this CPU."""
    from torchgpipe.balance import balance_by_time

    found: list[int] = balance_by_time(2, load.network(), load.inputs(), timeout=2.0, device=torch.device("cpu"))
    return found

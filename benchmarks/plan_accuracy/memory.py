"""Peak bytes of tensors on every rank: as planned, and as they are in real processes."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.plan_accuracy.cases import Case
from benchmarks.shared.networks import CLASSES, SMALL
from lampseg.config import LossConfig
from lampseg.hardware.device import hardware_for
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.rehearsal import rehearse
from lampseg.parallel.world import World
from lampseg.partition.costed import CostedNetwork, cost_network
from lampseg.partition.forecast import plan_of
from lampseg.partition.plan import Plan
from lampseg.partition.planner import cut_for
from lampseg.recording.live import LiveBytes
from lampseg.training.loss import HybridLoss, mini_batch_loss
from lampseg.training.planned_loss import planned_loss
from lampseg.training.supervision import supervised_loss

LOSS = LossConfig()


def planned(case: Case, *, kind: str = "cpu", path: str | None = None) -> tuple[CostedNetwork, Plan]:
    """The plan of a case; the cuts are the planner's, everything else is given."""
    network = SMALL[case.network].build(case.shape[2:], precision=case.precision, meta=True)
    loss = planned_loss(LOSS, classes=CLASSES)
    model = cost_network(
        network,
        shape=case.shape,
        precision=case.precision,
        hardware=hardware_for(kind="cuda" if kind == "cuda" else "cpu", name=path, processes=case.processes),
        loss=loss,
        name=case.network,
    )
    choices = cut_for(
        model,
        devices=case.devices,
        stages=case.stages,
        schedule=case.schedule,
        micro_batches=case.micro_batches,
        replicas=case.replicas,
        recompute=case.modes,
    )
    assert choices is not None, f"{case.network} has too few operations for {case.stages} stages"
    return model, plan_of(model, choices)


def predicted(case: Case, *, kind: str = "cpu") -> tuple[Plan, list[int]]:
    """The plan, and the bytes of tensors on each device of a replica, by rehearsal."""
    model, plan = planned(case, kind=kind)
    loads = rehearse(model, plan, planned_loss(LOSS, classes=CLASSES))
    return plan, [load.tensor_bytes for load in loads]


class Steps:
    """A network that trains by a plan on this rank, on random data."""

    def __init__(self, case: Case, plan: Plan, *, world: World) -> None:
        self.case, self.world = case, world
        self.dtype = torch.float64 if case.precision == "float64" else torch.float32
        network = SMALL[case.network].build(case.shape[2:], precision=case.precision)
        self.hybrid = HybridLoss((1.0,) * CLASSES, LOSS.focal, LOSS.gamma).to(world.device)
        self.model = ParallelModel(network, plan, world=world)
        parameters = list(self.model.parameters().values()) or [torch.zeros(1, requires_grad=True)]
        self.optimizer = torch.optim.RMSprop(parameters, lr=1e-5)

    def held(self) -> list[Tensor]:
        """What this rank holds between steps: its parameters and buffers, and the optimizer's numbers."""
        mine = set(self.model.owned)
        network = self.model.network
        named = (*network.named_parameters(), *network.named_buffers())
        numbers = (t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor))
        return [*(tensor for name, tensor in named if name in mine), *numbers]

    def step(self) -> None:
        case, device = self.case, self.world.device
        shape = case.shape

        def load(m: int) -> Tensor:
            return torch.full(shape, 0.1 * m, dtype=self.dtype, device=device)

        def loss(m: int, output: Any) -> Tensor:
            target = torch.full((shape[0], *shape[2:]), m % CLASSES, dtype=torch.int64, device=device)
            annotated = torch.ones((shape[0], CLASSES), dtype=torch.bool, device=device)
            return mini_batch_loss(
                supervised_loss(self.hybrid, output, target, annotated, None), batch=shape[0] * case.micro_batches
            )

        self.model.runner.step([shape] * case.micro_batches, load=load, loss=loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def measure(world: World, case: Case, plan: Plan) -> int:
    """On this rank: the most bytes of tensors that are alive at once in a step (the second: the first makes state)."""
    steps = Steps(case, plan, world=world)
    steps.step()
    if world.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(world.device)
        steps.step()
        return int(torch.cuda.max_memory_allocated(world.device))
    live = LiveBytes()
    for tensor in steps.held():
        live.add(tensor)
    # A mode sees the kernels of its own thread only: the backward must run on this one.
    with live, torch.autograd.set_multithreading_enabled(False):
        steps.step()
    return live.peak


def measure_all(world: World, work: list[tuple[Case, Plan]]) -> list[list[int]]:
    """Of every case, the peak of each rank."""
    return [[int(str(peak)) for peak in world.gather(measure(world, case, plan))] for case, plan in work]

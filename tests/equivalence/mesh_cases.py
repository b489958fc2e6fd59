"""What a mesh of replicas x places x slabs must equal one device on; and how a rank runs a case."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lampseg.parallel.model import ParallelModel
from lampseg.partition import Plan, make_plan
from lampseg.partition.costed import record_for
from lampseg.partition.plan import Recompute
from lampseg.partition.schedule import Schedule
from lampseg.training.supervision import logits_of
from tests.equivalence.any_network import RANDOM, build
from tests.equivalence.spatial_cases import CLASSES, loss_of, network_of, stride_of
from tests.ranks import sub_world

Shape = tuple[int, ...]


@dataclass(frozen=True)
class MeshCase:
    """One step of one network on one mesh; each shape is a micro-batch."""

    network: str
    places: int = 2
    slabs: tuple[int, int, int] = (2, 1, 1)
    replicas: int = 1
    shapes: tuple[Shape, ...] = ()
    schedule: Schedule = "1f1b"
    recompute: tuple[Recompute, ...] = ()
    precision: str = "float64"
    cut_seed: int | None = None
    """Cuts drawn at random among all allowed positions instead of planned ones."""
    dropout: bool = False
    seed: int = 5
    """Of the step, for random operations."""

    @property
    def id(self) -> str:
        grid = "x".join(map(str, self.slabs))
        parts = [self.network, f"{self.replicas}x{self.places}x{grid}", f"M{len(self.data_shapes)}", self.schedule]
        parts += [*self.recompute, *([self.precision] if self.precision != "float64" else [])]
        parts += [f"dropout{self.seed}"] * self.dropout
        return "-".join(parts + ([f"cut{self.cut_seed}"] if self.cut_seed is not None else []))

    def build(self) -> nn.Module:
        if not self.dropout:
            return network_of(self.network, self.precision)
        return build(self.network, **RANDOM[self.network])

    @property
    def ranks(self) -> int:
        return self.replicas * self.places * self.slabs[0] * self.slabs[1] * self.slabs[2]

    @property
    def stages(self) -> int:
        return self.places * (2 if self.schedule in ("v", "interleaved") else 1)

    @property
    def data_shapes(self) -> tuple[Shape, ...]:
        """Uneven slabs, and another shape in the second micro-batch."""
        if self.shapes:
            return self.shapes
        step = stride_of(self.network)
        wide = 3 if self.slabs[1] > 1 else 1
        return ((2, 1, 3 * step, wide * step, 2 * step), (1, 1, 2 * step, 2 * step, step))


def data_of(case: MeshCase) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    dtype = torch.float64 if case.precision == "float64" else torch.float32
    return [
        (
            torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype),
            torch.randint(0, CLASSES, (shape[0], *shape[2:]), generator=generator),
        )
        for shape in case.data_shapes
    ]


def one_device(case: MeshCase) -> dict[str, Any]:
    """The micro-batches one after the other, then each once more in eval mode."""
    network, data = case.build().train(), data_of(case)
    losses = []
    for x, target in data:
        loss = loss_of(network(x), target) / len(data)
        loss.backward()
        losses.append(float(loss.detach()))
    network.eval()
    with torch.no_grad():
        labels = [logits_of(network(x))[0][0].argmax(0) for x, _ in data]
    return {
        "losses": losses,
        "gradients": {name: p.grad for name, p in network.named_parameters() if p.grad is not None},
        "buffers": dict(network.named_buffers()),
        "labels": labels,
    }


def plan_for(case: MeshCase) -> Plan:
    """Cuts that balance the forward."""
    network = case.build().train()
    plan = make_plan(
        network,
        shape=case.data_shapes[0],
        devices=case.places,
        micro_batches=len(case.data_shapes),
        schedule=case.schedule,
        precision=case.precision,
        training=False,
    )
    cuts = plan.cuts
    if case.cut_seed is not None:
        graph = record_for(network, shape=case.data_shapes[0], precision=case.precision, device="cpu")
        allowed = [at for at in range(1, len(graph.operations)) if at not in graph.forbidden]
        cuts = tuple(sorted(random.Random(case.cut_seed).sample(allowed, case.stages - 1)))
    modes = case.recompute * case.stages if len(case.recompute) == 1 else case.recompute or ("none",) * case.stages
    choices = replace(plan.choices, cuts=cuts, slabs=case.slabs, replicas=case.replicas, recompute=modes)
    return replace(plan, choices=choices)


def run_meshes(rank: int, size: int, cases: Sequence[tuple[MeshCase, Plan]]) -> list[dict[str, Any]]:
    """On this rank of so many."""
    world = sub_world(size)
    return [_one(case, plan, world) for case, plan in cases]


def _one(case: MeshCase, plan: Plan, world: Any) -> dict[str, Any]:
    network, data = case.build().train(), data_of(case)
    step = stride_of(case.network)
    model = ParallelModel(network, plan, world=world, stride=(step,) * 3)
    runner = model.runner

    def part(t: Tensor, shape: Shape) -> Tensor:
        return t[(slice(None),) * (t.dim() - 3) + runner.region(shape)].contiguous()

    def loss(m: int, output: Any) -> Tensor:
        shape = tuple(data[m][0].shape)
        return loss_of(output, runner.placed(part(data[m][1], shape), shape)) / len(data)

    shapes = [tuple(x.shape) for x, _ in data]
    losses = runner.step(shapes, load=lambda m: part(data[m][0], shapes[m]), loss=loss, seed=case.seed)
    gradients = {name: p.grad for name, p in model.parameters().items() if p.grad is not None}
    state = model.gather()
    buffers = {name: b.clone() for name, b in network.named_buffers() if name in set(model.owned)}
    network.eval()
    mine = [shapes[m] for m in model.mesh.spread(len(shapes))]
    which = list(model.mesh.spread(len(shapes)))
    found = list(runner.labels(mine, load=lambda n: part(data[which[n]][0], mine[n]), logits=lambda o: logits_of(o)[0]))
    model.load(state)
    after = model.gather()
    assert all(torch.equal(after[name], tensor) for name, tensor in state.items())
    return {
        "replica": model.mesh.replica,
        "yields": model.yields_output,
        "losses": losses,
        "gradients": gradients,
        "buffers": buffers,
        "labels": {which[n]: labels for n, labels in enumerate(found) if labels is not None},
        "state": sorted(state),
    }

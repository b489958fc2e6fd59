"""Replicas train as one device does, through every change of plan; what they can't join is refused."""

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lampseg.errors import UserError
from lampseg.parallel import model as model_module
from lampseg.parallel.exchange import gather_all
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.pipeline import runner
from lampseg.parallel.replicas.gradients import GradientSum
from lampseg.partition import Plan, costed, make_plan
from lampseg.partition.plan import Choices
from tests.equivalence.one_device import loss_of
from tests.equivalence.remembered import recorded_once
from tests.ranks import run_ranks, sub_mesh, sub_world

pytestmark = pytest.mark.timeout(240)  # the first test waits for the processes

SHAPES = ((2, 1, 8), (3, 1, 6), (2, 1, 6), (2, 1, 8), (2, 1, 10), (3, 1, 8))
WAYS = (("v", 2, 2), ("gpipe", 4, 1), ("interleaved", 2, 2), ("1f1b", 1, 4))
"""Schedule, replicas and devices of one plan after the other."""


class Norms(nn.Module):
    """Statistics of every sort, one norm that runs twice, one that is frozen, and parameters without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Conv1d(1, 4, 3, padding=1), nn.Conv1d(4, 4, 1), nn.Conv1d(4, 2, 1)
        self.batch, self.twice = nn.BatchNorm1d(4, momentum=0.3), nn.BatchNorm1d(4)
        self.instance = nn.InstanceNorm1d(4, affine=True, track_running_stats=True)
        self.frozen = nn.BatchNorm1d(4)
        self.deep = nn.Sequential(*(nn.Sequential(nn.Conv1d(4, 4, 1), nn.Tanh()) for _ in range(4)))
        self.never = nn.Parameter(torch.ones(3))

    def train(self, mode: bool = True) -> "Norms":
        super().train(mode)
        self.frozen.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch(self.first(x)).relu()
        x = self.twice(self.second(self.twice(x)))
        return self.third(self.deep(self.frozen(self.instance(x))))


class OwnBuffer(Norms):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean())
        return super().forward(x)


class OwnNorm(Norms):
    """Batch norm as a function: its kernel changes the buffers without autograd or the dry run noticing."""

    updates = True

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("var", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.batch_norm(x, self.mean, self.var, training=self.updates))


class OwnFrozenNorm(OwnNorm):
    updates = False


def build(kind: type[nn.Module] = Norms) -> nn.Module:
    torch.manual_seed(4)
    return kind().double().train()


def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def plan_of(network: nn.Module, schedule: Any, replicas: int, devices: int) -> Plan:
    stages = devices * {"gpipe": 1, "1f1b": 1, "v": 2, "interleaved": 2}[schedule]
    plan = make_plan(network, shape=SHAPES[0], devices=stages, precision="float64")
    choices = Choices(devices, replicas, len(SHAPES), schedule, plan.cuts, ("none",) * stages)
    return replace(plan, choices=choices)


def update(parameters: Any) -> None:
    with torch.no_grad():
        for parameter in parameters:
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
                parameter.grad = None


def one_device() -> list[dict[str, Tensor]]:
    """The state after each step."""
    network, states = build(), []
    for _ in WAYS:
        for x in data():
            loss_of(network(x)).backward()  # type: ignore[no-untyped-call]
        update(network.parameters())
        states.append({key: tensor.clone() for key, tensor in network.state_dict().items()})
    return states


def several(rank: int) -> dict[str, Any]:
    """Everything that these tests look at, in one start of the processes."""
    world = sub_world(4)
    assert world is not None
    for module in (model_module, costed, runner):
        module.record_for = recorded_once  # type: ignore[attr-defined]
    network, inputs = build(), data()
    plans = [plan_of(network, *way) for way in WAYS]
    model = ParallelModel(network, plans[0], world=world)
    states, optimizer = [], []
    for plan in plans:
        model.replan(plan)
        model.runner.step(SHAPES, load=lambda m: inputs[m], loss=lambda m, out: loss_of(out))
        update(model.parameters().values())
        states.append(model.gather())
        numbers = {name: torch.full((1,), float(rank)) for name in model.owned}
        optimizer.append(gather_all(numbers, mesh=model.mesh))
    refused = {}
    for kind in (OwnBuffer, OwnNorm, OwnFrozenNorm):
        other = build(kind)
        own = ParallelModel(other, plan_of(other, "gpipe", 4, 1), world=world)
        try:
            own.runner.step(SHAPES, load=lambda m: inputs[m], loss=lambda m, out: loss_of(out))
        except UserError as error:
            refused[kind.__name__] = str(error)
    return {"states": states, "optimizer": optimizer, "refused": refused, "sums": sums(rank)}


def sums(rank: int) -> dict[str, list[Tensor | None]]:
    """Of four ranks, with buckets of any size."""
    mesh = sub_mesh(4, 1)
    assert mesh is not None
    assert mesh.column is not None
    found: dict[str, list[Tensor | None]] = {}
    for nbytes in (1, 40, 2**20):
        generator = torch.Generator().manual_seed(rank)
        parameters = [nn.Parameter(torch.zeros(shape, dtype=kind)) for shape, kind in PARAMETERS]
        for n, parameter in enumerate(parameters):
            if n < 3 or (n == 3 and rank in (1, 2)):
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        parameters[2].grad = parameters[2].grad.mT.contiguous().mT  # type: ignore[union-attr]
        total = GradientSum(mesh.column, nbytes=nbytes)
        total.add(parameters[2:])
        total.add(parameters[:2])
        total.finish()
        found[str(nbytes)] = [parameter.grad for parameter in parameters]
    return found


PARAMETERS: tuple[tuple[tuple[int, ...], torch.dtype], ...] = (
    ((5,), torch.float32),
    ((3, 2), torch.float64),
    ((4, 3), torch.float32),
    ((7,), torch.float32),
    ((2,), torch.float32),
)
"""The fourth has a gradient on two of four replicas, the last on none."""


@functools.cache
def results() -> list[dict[str, Any]]:
    return run_ranks(several, 4, timeout=220)


def test_every_change_of_plan_goes_on_as_one_device() -> None:
    expected, found = one_device(), results()
    assert all(state == {} for rank in found[1:] for state in rank["states"])
    for way, wanted, state in zip(WAYS, expected, found[0]["states"], strict=True):
        assert state.keys() == wanted.keys(), way
        for key, tensor in wanted.items():
            torch.testing.assert_close(state[key], tensor, rtol=1e-9, atol=1e-9, msg=f"{way}: {key}")


def test_state_is_gathered_from_the_first_replica() -> None:
    for (_, _, devices), numbers in zip(WAYS, results()[0]["optimizer"], strict=True):
        assert {int(number) for number in numbers.values()} == set(range(devices))


def test_a_buffer_that_replicas_can_not_join_is_refused() -> None:
    for rank in results():
        assert rank["refused"].keys() == {"OwnBuffer", "OwnNorm"}, "one that only reads its buffers is none"
        for kind, message in rank["refused"].items():
            assert f"{kind} updates the buffer `mean`" in message
            assert "Use replicas: 1" in message


@pytest.mark.parametrize("nbytes", ["1", "40", str(2**20)])
def test_gradients_are_summed_in_buckets_of_any_size(nbytes: str) -> None:
    wanted: list[Tensor | None] = [None] * len(PARAMETERS)
    for rank in range(4):
        generator = torch.Generator().manual_seed(rank)
        for n, (shape, kind) in enumerate(PARAMETERS):
            if n < 3 or (n == 3 and rank in (1, 2)):
                gradient, before = torch.randn(shape, generator=generator).to(kind), wanted[n]
                wanted[n] = gradient if before is None else before + gradient
    for rank in results():
        for found, expected in zip(rank["sums"][nbytes], wanted, strict=True):
            assert (found is None) == (expected is None)
            if expected is not None:
                torch.testing.assert_close(found, expected)

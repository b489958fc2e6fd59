"""The slab runner, apart from what it computes: outputs that are stacks of levels, and ranks that part ways."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lampseg.errors import UserError
from lampseg.parallel.model import ParallelModel
from lampseg.partition import make_plan
from lampseg.partition.plan import Plan
from lampseg.training.supervision import logits_of
from tests.equivalence.any_network import build
from tests.ranks import run_ranks, sub_world

pytestmark = pytest.mark.timeout(200)

STRIDE = (4, 4, 4)
SHAPE = (1, 1, 12, 8, 8)


def in_slabs(network: nn.Module, *, training: bool = True) -> ParallelModel:
    plan: Plan = make_plan(network.train(), shape=SHAPE, precision="float64")
    plan = replace(plan, choices=replace(plan.choices, slabs=(2, 1, 1)))
    world = sub_world(2)
    assert world is not None
    return ParallelModel(network, plan, world=world, training=training, stride=STRIDE)


def data() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def stacked(rank: int) -> dict[str, Any]:
    """Of a network in train mode, which stacks its levels along a dimension of their own."""
    model = in_slabs(build("dynunet-deep"))
    runner = model.runner
    mine = data()[(..., *runner.region(SHAPE))].contiguous()
    (part,) = runner.parts([SHAPE], load=lambda m: mine, logits=lambda output: logits_of(output)[0])
    (labels,) = runner.labels([SHAPE], load=lambda m: mine, logits=lambda output: logits_of(output)[0])
    return {"region": runner.region(SHAPE), "part": part, "labels": labels}


def test_a_stack_of_levels_is_taken_apart() -> None:
    with torch.no_grad():
        output = build("dynunet-deep").train()(data())
    assert output.dim() == 6
    expected = logits_of(output)[0]
    ranks = run_ranks(stacked, 2)
    for found in ranks:
        torch.testing.assert_close(found["part"], expected[(..., *found["region"])], rtol=0, atol=1e-12)
    assert torch.equal(ranks[0]["labels"], expected[0].argmax(0))
    assert ranks[1]["labels"] is None


class Deciding(nn.Module):
    """Does something more where it sees many planes; of 12, one rank has 8 and the other 4."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv3d(1, 2, 3, padding=1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.convolution(x)
        return out.relu() if x.shape[2] > 6 else out


def deciding(rank: int) -> str:
    runner = in_slabs(Deciding()).runner
    mine = data()[(..., *runner.region(SHAPE))].contiguous()
    try:
        runner.step([SHAPE], load=lambda m: mine, loss=lambda m, output: output.square().mean())
    except UserError as error:
        return str(error)
    return "none"


def test_ranks_that_part_ways_are_noticed() -> None:
    for says in run_ranks(deciding, 2):
        assert "Deciding does not do the same on all slabs of a volume of shape (1, 1, 12, 8, 8)" in says

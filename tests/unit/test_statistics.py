"""Running statistics of blocks, joined, are those of one norm that saw everything in order."""

import pytest
import torch
from torch import nn

from lampseg.parallel.replicas.statistics import contribution, joined

BLOCKS = ((3, 1, 2), (1, 4), (2,), (1, 1, 1, 1))
"""How many updates each replica makes, by test."""


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("momentum", [0.1, 0.75, 1.0, None])
@pytest.mark.parametrize("before", [0, 3])
def test_joined_blocks_are_one_run(blocks: tuple[int, ...], momentum: float | None, before: int) -> None:
    draw = torch.Generator().manual_seed(0)
    norm = nn.BatchNorm1d(4, momentum=momentum).double()
    for _ in range(before):
        norm(torch.randn(3, 4, generator=draw, dtype=torch.float64))
    start = {key: value.clone() for key, value in norm.state_dict().items()}
    data = [[torch.randn(3, 4, generator=draw, dtype=torch.float64) * 2 + 1 for _ in range(n)] for n in blocks]
    for block in data:
        for x in block:
            norm(x)
    for key in ("running_mean", "running_var"):
        total = torch.zeros(4, dtype=torch.float64)
        for number, block in enumerate(data):
            replica = nn.BatchNorm1d(4, momentum=momentum).double()
            replica.load_state_dict(start)
            for x in block:
                replica(x)
            total += contribution(
                replica.state_dict()[key],
                start[key],
                updates=len(block),
                after=sum(blocks[number + 1 :]),
                momentum=momentum,
                before=before,
            )
        found = joined(total, start[key], updates=sum(blocks), momentum=momentum, before=before)
        torch.testing.assert_close(found, norm.state_dict()[key], rtol=1e-12, atol=1e-12)


def test_no_update_leaves_the_statistic() -> None:
    start = torch.tensor([1.0, 2.0])
    for momentum in (0.1, None):
        added = contribution(start, start, updates=0, after=0, momentum=momentum, before=0)
        assert torch.equal(joined(added, start, updates=0, momentum=momentum, before=0), start)

"""State moves between placements: gathered from three stages, handed out to two, the same values everywhere."""

from typing import Any

import torch
from torch import Tensor, nn

from lampseg.parallel.state import gather_state, hold, named_state, owners_of, scatter_state
from lampseg.partition import place, record_for
from tests.ranks import run_ranks, sub_world

SHAPE = (2, 1, 8)


class Tied(nn.Module):
    """Tied weights, a buffer that is not saved, and a parameter that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv1d(n, 4, 3, padding=1) for n in (1, 4, 4, 4))
        self.c.weight = self.b.weight
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("scale", torch.rand(4, 1), persistent=False)
        self.never = nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.norm(self.c(self.b(self.a(x)))) * self.scale)


def build() -> nn.Module:
    torch.manual_seed(3)
    return Tied()


def round_trip(rank: int) -> dict[str, Any]:
    three, two = sub_world(3), sub_world(2)
    assert three is not None
    network = build()
    graph = record_for(network, shape=SHAPE, precision="float32", device="cpu")
    owners = owners_of(network, place(graph, (1, 4)))
    owned = [name for name, owner in owners.items() if owner == rank]
    hold(network, owned=owned, device=three.device)
    assert network.c.weight is network.b.weight
    assert network.c.weight.is_meta == (rank != 1)
    state = gather_state(named_state(network), owners=owners, world=three)
    result: dict[str, Any] = {"owners": owners, "gathered": state}
    if two is None:
        return result
    with torch.device("meta"):
        fresh = Tied()  # no values at all
    owners = owners_of(fresh, place(graph, (5,)))
    owned = [name for name, owner in owners.items() if owner == rank]
    hold(fresh, owned=owned, device=two.device)
    scatter_state(named_state(fresh), state, owners=owners, world=two)
    named = named_state(fresh)
    return result | {"mine": {name: named[name].detach() for name in owned}, "tied": fresh.c.weight is fresh.b.weight}


def test_three_stages_to_two() -> None:
    expected = named_state(build())
    results = run_ranks(round_trip, 3)
    owners = results[0]["owners"]
    assert set(owners.values()) == {0, 1, 2}
    assert owners["b.weight"] == 1
    assert "c.weight" not in owners, "a tied parameter is one parameter"
    assert owners["never"] == 0
    assert results[1]["gathered"] == results[2]["gathered"] == {}
    handed = results[0]["mine"] | results[1]["mine"]
    assert not results[0]["mine"].keys() & results[1]["mine"].keys()
    for found in (results[0]["gathered"], handed):
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor), name
    assert results[0]["tied"]
    assert results[1]["tied"]

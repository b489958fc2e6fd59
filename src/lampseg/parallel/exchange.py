"""Moving whole-network state between the ranks: gathered to rank 0 by name, and handed out to new owners."""

import torch
from torch import Tensor

from lampseg.parallel.state import gather_state, scatter_state
from lampseg.parallel.world import World


def gather_all(mine: dict[str, Tensor], *, world: World) -> dict[str, Tensor]:
    """Everyone's named tensors (each held by one rank) on rank 0's CPU; elsewhere nothing."""
    described = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in mine.items()}
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    owners: dict[str, int] = {}
    for rank, items in enumerate(world.gather(described)):
        assert isinstance(items, dict)
        shapes |= items
        owners |= dict.fromkeys(items, rank)
    like = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in shapes.items()}
    return gather_state(like | mine, owners=owners, world=world)


def scatter_all(state: dict[str, Tensor], *, owners: dict[str, int], world: World) -> dict[str, Tensor]:
    """Hands rank 0's tensors to their owners (`owners` may name more); returns mine, on the CPU."""
    described = world.broadcast({name: (tuple(t.shape), t.dtype) for name, t in state.items()} if world.first else None)
    assert isinstance(described, dict)
    wanted = {name: owners[name] for name in described}
    mine = {
        name: torch.empty(described[name][0], dtype=described[name][1])
        for name, owner in wanted.items()
        if owner == world.rank
    }
    scatter_state(mine, state, owners=wanted, world=world)
    return mine

"""Moving whole-network state between the ranks: gathered to rank 0 by name, and handed out to new owners."""

import torch
import torch.distributed as dist
from torch import Tensor

from lampseg.parallel.mesh import Mesh
from lampseg.parallel.state import gather_state, scatter_state


def gather_all(mine: dict[str, Tensor], *, mesh: Mesh) -> dict[str, Tensor]:
    """The first replica's named tensors (each held by one device) on rank 0's CPU; elsewhere nothing."""
    world = mesh.world
    if mesh.replica > 0:
        mine = {}
    described = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in mine.items()}
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    owners: dict[str, int] = {}
    for rank, items in enumerate(world.gather(described)):
        assert isinstance(items, dict)
        shapes |= items
        owners |= dict.fromkeys(items, rank)
    like = {name: torch.empty(shape, dtype=dtype, device="meta") for name, (shape, dtype) in shapes.items()}
    return gather_state(like | mine, owners=owners, world=world)


def scatter_all(state: dict[str, Tensor], *, owners: dict[str, int], mesh: Mesh) -> dict[str, Tensor]:
    """Hands rank 0's tensors to the devices that own them, in every replica; returns mine, on the CPU.

    Args:
        owners: the device of each name (where several share a place, the first of them); may name more.
    """
    world = mesh.world
    described = world.broadcast({name: (tuple(t.shape), t.dtype) for name, t in state.items()} if world.first else None)
    assert isinstance(described, dict)
    wanted = {name: owners[name] for name in described}
    mine = {
        name: torch.empty(described[name][0], dtype=described[name][1])
        for name, owner in wanted.items()
        if owner == mesh.device
    }
    scatter_state(mine, state, owners=wanted, world=world)  # to the first replica, whose ranks are its devices
    first = mesh.place * mesh.sharing
    mine = {
        name: mine.get(name, torch.empty(shape, dtype=dtype))
        for name, (shape, dtype) in described.items()
        if wanted[name] == first
    }
    group = mesh.column if mesh.holders is None else mesh.holders
    if group is not None:
        for tensor in mine.values():
            dist.broadcast(tensor, src=first, group=group)
    return mine

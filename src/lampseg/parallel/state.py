"""Parameters, buffers and optimizer state of the whole network, spread over the stages that own them and gathered back.

Names are those of the unsplit network, so what is gathered loads into any split and into the bare network.
"""

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lampseg.parallel.world import World
from lampseg.partition.placement import Placement


def owners_of(network: nn.Module, placement: Placement) -> dict[str, int]:
    """The stage that holds each parameter and buffer; what the forward pass never reads stays with the first."""
    read = placement.owners()
    named = (*network.named_parameters(), *network.named_buffers())
    return {name: read.get(name, 0) for name, _ in named}


def hold(network: nn.Module, *, owned: Iterable[str], device: torch.device) -> None:
    """Moves the owned parameters and buffers to `device` and all others to meta, where they take no memory.

    A tensor that was on meta and is now owned gets memory without content. Tied tensors stay tied.
    """
    names = {id(tensor): name for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    mine = set(owned)
    moved: dict[int, Tensor] = {}
    for module in network.modules():
        for table in (module._parameters, module._buffers):
            for key, tensor in table.items():
                if tensor is None:
                    continue
                if id(tensor) not in moved:
                    moved[id(tensor)] = _moved(tensor, device if names[id(tensor)] in mine else torch.device("meta"))
                table[key] = moved[id(tensor)]  # type: ignore[assignment]


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    if tensor.device == device:
        return tensor
    with torch.no_grad():
        data = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.detach().to(device)
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=tensor.requires_grad)
    return data


def gather_state(tensors: dict[str, Tensor], *, owners: dict[str, int], world: World) -> dict[str, Tensor]:
    """Collects named tensors from their owners: on rank 0 all of them, on the CPU; elsewhere nothing."""
    gathered: dict[str, Tensor] = {}
    for name, owner in owners.items():
        if owner == world.rank and not world.first:
            dist.send(tensors[name].detach().cpu().contiguous(), 0, group=world.control)
        elif world.first:
            like = tensors[name]
            if owner == 0:
                gathered[name] = like.detach().cpu().clone()
            else:
                gathered[name] = torch.empty(like.shape, dtype=like.dtype)
                dist.recv(gathered[name], owner, group=world.control)
    return gathered


def scatter_state(
    tensors: dict[str, Tensor], state: dict[str, Tensor], *, owners: dict[str, int], world: World
) -> None:
    """Copies rank 0's `state` into the owners' `tensors`."""
    for name, owner in owners.items():
        if owner == 0 and world.first:
            with torch.no_grad():
                tensors[name].copy_(state[name])
        elif world.first:
            dist.send(state[name].contiguous(), owner, group=world.control)
        elif owner == world.rank:
            buffer = torch.empty(tensors[name].shape, dtype=tensors[name].dtype)
            dist.recv(buffer, 0, group=world.control)
            with torch.no_grad():
                tensors[name].copy_(buffer)


def named_state(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, each once (persistent or not: running on needs them all)."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}

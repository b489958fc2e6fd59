"""Fake state: a network whose parameters and buffers take no memory, as it would be on the device of one stage."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lampseg.parallel.state import owners_of
from lampseg.partition.placement import Placement
from lampseg.recording.fake_mode import DryMode
from lampseg.recording.record import restored


class FakeState:
    """A network's parameters and buffers as fake tensors, or on meta, in turn."""

    def __init__(self, network: nn.Module, mode: FakeTensorMode) -> None:
        self.network, self.mode = network, mode
        self._on_meta: dict[int, Tensor] = {}
        self._original = [
            (table, key, tensor)
            for module in network.modules()
            for table in (module._parameters, module._buffers)
            for key, tensor in table.items()
            if tensor is not None
        ]
        self._names = {id(t): name for name, t in (*network.named_parameters(), *network.named_buffers())}

    def hold(self, placement: Placement, stage: int, *, gradients: bool) -> None:
        """As on the device of one stage: its state there, everything else on meta; with or without gradients."""
        owners = owners_of(self.network, placement)
        device = placement.graph.input.device
        made: dict[int, Tensor] = {}
        for table, key, tensor in self._original:
            if id(tensor) not in made:
                if owners[self._names[id(tensor)]] == stage:
                    made[id(tensor)] = self._twin(tensor, device, gradients)
                else:
                    made[id(tensor)] = self._absent(tensor)
            cast(dict[str, Any], table)[key] = made[id(tensor)]

    def _absent(self, tensor: Tensor) -> Tensor:
        """On meta; no stage changes it, so that one serves all."""
        if id(tensor) not in self._on_meta:
            self._on_meta[id(tensor)] = self._twin(tensor, torch.device("meta"), False)
        return self._on_meta[id(tensor)]

    def _twin(self, tensor: Tensor, device: torch.device, gradient: bool) -> Tensor:
        with self.mode, torch.no_grad():
            twin = torch.empty_strided(tuple(tensor.shape), tensor.stride(), dtype=tensor.dtype, device=device)
            if not isinstance(tensor, nn.Parameter):
                return twin
            parameter = nn.Parameter(twin, requires_grad=tensor.requires_grad)
            if gradient and tensor.requires_grad:
                parameter.grad = torch.empty_like(twin)
            return parameter


@contextmanager
def fake_state(network: nn.Module) -> Iterator[FakeState]:
    """Within, the network may hold fake tensors; afterwards it is as it was."""
    with restored(network):
        yield FakeState(network, DryMode())

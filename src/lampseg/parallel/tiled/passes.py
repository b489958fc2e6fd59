"""Passes in tiles: one forward of a network under the tiled mode, recorded for its shape on first use."""

from typing import Any

import torch
from torch import Tensor, nn

from lampseg.parallel.tiled.mode import TiledMode
from lampseg.parallel.tiled.units import Unit, by_member, units_of
from lampseg.partition.costed import record_for
from lampseg.recording.custom_functions import visible_functions
from lampseg.recording.graph import Graph

Shape = tuple[int, ...]


class TiledPasses:
    """Runs a network in tiles, in its present mode and with or without gradients as at the call.

    Args:
        tile: planes of the network's input that a tile has; tiles elsewhere have as many voxels.
        device: where the network runs.
        precision: float32, float64 or bfloat16 (mixed).
    """

    def __init__(self, network: nn.Module, *, tile: int, device: torch.device, precision: str) -> None:
        self.network, self.tile, self.device, self.precision = network, tile, device, precision
        self._known: dict[Any, tuple[Graph, dict[int, Unit]]] = {}

    def know(self, graph: Graph) -> None:
        """Takes a recording that was made before, in the network's present mode."""
        self._known[self._key(graph.input.shape)] = graph, dict(by_member(units_of(graph)))

    def graph(self, shape: Shape) -> Graph:
        """The recording for an input's shape.

        Raises:
            UserError: the network can't take such an input.
        """
        return self._lookup(shape)[0]

    def forward(self, x: Tensor, *, seed: int = 0) -> Any:
        """The network's output.

        Args:
            seed: for random operations.
        """
        graph, units = self._lookup(tuple(x.shape))
        # A hook may keep what a module returns: out of the recording's sight.
        hooked = any(module._forward_hooks or module._forward_pre_hooks for module in self.network.modules())
        mode = TiledMode(graph, units, tile=self.tile, device=self.device, seed=seed, overwrites=not hooked)
        with (
            torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"),
            visible_functions(),
            mode,
        ):
            output = self.network(x)
        return mode.finish(output)

    def _lookup(self, shape: Shape) -> tuple[Graph, dict[int, Unit]]:
        key = self._key(shape)
        if key not in self._known:
            graph = record_for(
                self.network,
                shape=shape,
                precision=self.precision,
                device=self.device.type,
                gradients=torch.is_grad_enabled(),
            )
            self._known[key] = graph, dict(by_member(units_of(graph)))
        return self._known[key]

    def _key(self, shape: Shape) -> Any:
        modes = tuple(module.training for module in self.network.modules())
        trained = tuple(parameter.requires_grad for parameter in self.network.parameters())
        return shape, modes, trained, torch.is_grad_enabled()

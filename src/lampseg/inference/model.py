"""What segments: a model split over ranks, or any network as it is on one device."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lampseg.errors import UserError
from lampseg.parallel.mesh import Mesh
from lampseg.parallel.world import World

Shape = tuple[int, ...]


class Unfit(UserError):
    """A network can't take an image."""


class Runner(Protocol):
    """Passes volumes through a network: a pipeline's, that of slabs, or `Alone`."""

    def parts(
        self, shapes: Sequence[Shape], *, load: Callable[[int], Tensor], logits: Callable[[Any], Tensor]
    ) -> Iterator[Tensor | None]:
        """The logits (N, C, *part) of each input where they are; elsewhere None."""

    def check(self, shape: Shape) -> None:
        """Raises UserError if the network can't take such an input; on every rank of the replica alike."""

    def region(self, shape: Shape) -> tuple[slice, ...]:
        """The part of a volume that this process loads and has the logits of."""

    def scatter(self, whole: Tensor | None, shape: Shape, *, dtype: torch.dtype) -> Tensor:
        """My part of an input that the first rank has."""


class Segmenter(Protocol):
    """What `ParallelModel` has and `Alone` imitates."""

    network: nn.Module

    @property
    def runner(self) -> Runner: ...

    @property
    def mesh(self) -> Mesh: ...

    @property
    def world(self) -> World: ...

    @property
    def yields_output(self) -> bool: ...


class Alone:
    """A network in this process, in eval mode; no process group is needed, and nothing is planned.

    Args:
        device: where its parameters are.
        precision: float32, float64 or bfloat16 (mixed).
    """

    yields_output = True

    def __init__(self, network: nn.Module, *, device: torch.device, precision: str = "float32") -> None:
        self.network = network.eval()
        self.world = World(0, 1, device, channels=None, control=None)  # type: ignore[arg-type]
        self.mesh = Mesh(self.world, 1, 1)
        self.runner = self
        self.precision = precision

    @torch.no_grad()
    def parts(
        self, shapes: Sequence[Shape], *, load: Callable[[int], Tensor], logits: Callable[[Any], Tensor]
    ) -> Iterator[Tensor | None]:
        """The logits (N, C, X, Y, Z) of each input."""
        kind = self.world.device.type
        for index in range(len(shapes)):
            with torch.autocast(kind, torch.bfloat16, enabled=self.precision == "bfloat16"):
                output = self._output(load(index))
            yield logits(output)
            del output

    def _output(self, x: Tensor) -> Any:
        try:
            return self.network(x)
        except ValueError as error:
            if "Expected more than 1" not in str(error):
                raise
            raise Unfit(
                f"{list(x.shape[2:])} voxels shrink to a single one at the network's deepest level, which cannot be "
                "normalised; segment it with a window, which pads it"
            ) from error

    def check(self, shape: Shape) -> None:
        """Nothing is known beforehand; `parts` raises Unfit."""

    def region(self, shape: Shape) -> tuple[slice, ...]:
        """All of a volume."""
        return tuple(slice(0, size) for size in shape[2:])

    def scatter(self, whole: Tensor | None, shape: Shape, *, dtype: torch.dtype) -> Tensor:
        """The input on my device."""
        assert whole is not None
        return whole.to(self.world.device, dtype)

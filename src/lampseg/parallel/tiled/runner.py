"""The tile runner: trains and segments with the whole, unmodified network on one device, tile by tile."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lampseg.parallel.mesh import Mesh
from lampseg.parallel.randomness import mix
from lampseg.parallel.tiled.passes import TiledPasses
from lampseg.partition.plan import Choices

Shape = tuple[int, ...]


class TileRunner:
    """One device and its network; with the methods of the pipeline's runner, so that the trainer need not know.

    Args:
        network: on the device.
        mesh: of one rank.
        choices: of the plan.
        precision: float32, float64 or bfloat16 (mixed).
    """

    yields_output = True

    def __init__(self, network: nn.Module, *, mesh: Mesh, choices: Choices, precision: str) -> None:
        choices.check()
        assert choices.tile
        assert mesh.world.size == 1
        self.network, self.mesh, self.choices = network, mesh, choices
        self.passes = TiledPasses(network, tile=choices.tile, device=mesh.world.device, precision=precision)
        self.waited = 0.0
        """One process waits for nobody."""
        self.busy = 0.0
        """Seconds of the last step."""
        self.seconds: dict[int, tuple[float, float]] = {}
        """Of the last step: seconds in the forwards and in the backwards."""

    def step(
        self,
        shapes: Sequence[Shape],
        *,
        load: Callable[[int], Tensor],
        loss: Callable[[int, Any], Tensor],
        seed: int = 0,
    ) -> list[float]:
        """Forward and backward of one mini-batch; its gradients are added to the parameters' `.grad`.

        Args:
            shapes: of each micro-batch's input; they may differ.
            load: gives the input of micro-batch m on the device.
            loss: gives the loss of micro-batch m from the network's output. The mini-batch's loss is the sum over
                micro-batches, so each must carry its weight.
            seed: of the step, for random operations.

        Returns:
            The losses of the micro-batches.

        Raises:
            UserError: the network can't take such an input.
        """
        begun = time.perf_counter()
        forwards = backwards = 0.0
        losses: list[Tensor] = []
        for m, shape in enumerate(shapes):
            self.passes.graph(tuple(shape))
            x = [load(m)]
            started = time.perf_counter()
            output = self.passes.forward(x.pop(), seed=mix(seed, m))
            value = loss(m, output)
            del output
            halfway = time.perf_counter()
            value.backward()  # type: ignore[no-untyped-call]
            losses.append(value.detach())
            forwards, backwards = forwards + halfway - started, backwards + time.perf_counter() - halfway
        self.busy = time.perf_counter() - begun
        self.seconds = {0: (forwards, backwards)}
        return [float(value) for value in losses]

    @torch.no_grad()
    def predict(self, shapes: Sequence[Shape], *, load: Callable[[int], Tensor]) -> Iterator[Any]:
        """The network's output for each input, in the network's present mode."""
        for m, shape in enumerate(shapes):
            self.passes.graph(tuple(shape))
            yield self.passes.forward(load(m), seed=m)

    def region(self, shape: Shape) -> tuple[slice, ...]:
        """The part of a volume that this process loads: all of it."""
        return tuple(slice(0, size) for size in shape[2:])

    def placed(self, mine: Tensor, shape: Shape) -> Tensor:
        """What was loaded, as the network or the loss takes it: unchanged."""
        return mine

    def scatter(self, whole: Tensor | None, shape: Shape, *, dtype: torch.dtype) -> Tensor:
        """The input on the device."""
        assert whole is not None
        return whole.to(self.mesh.world.device, dtype)

    def parts(
        self, shapes: Sequence[Shape], *, load: Callable[[int], Tensor], logits: Callable[[Any], Tensor]
    ) -> Iterator[Tensor | None]:
        """The logits (N, C, X, Y, Z) of each input.

        Args:
            logits: those among what the network returns.
        """
        for output in self.predict(shapes, load=load):
            yield logits(output)
            del output

    @torch.no_grad()
    def check(self, shape: Shape) -> None:
        """Raises UserError if the network can't take such an input."""
        self.passes.graph(tuple(shape))

    def labels(
        self, shapes: Sequence[Shape], *, load: Callable[[int], Tensor], logits: Callable[[Any], Tensor]
    ) -> Iterator[Tensor | None]:
        """Class indices (X, Y, Z) of each volume. Arguments as of `parts`."""
        for found in self.parts(shapes, load=load, logits=logits):
            assert found is not None
            yield found[0].argmax(0)
            del found

"""The slab runner: trains and segments with the whole, unmodified network on this rank's slab of every volume."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lampseg.errors import UserError
from lampseg.parallel.mesh import Mesh
from lampseg.parallel.randomness import mix
from lampseg.parallel.replicas import Replicas
from lampseg.parallel.spatial.checkpointed import recomputing
from lampseg.parallel.spatial.cutting import Cutting
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.partition.costed import record_for
from lampseg.partition.plan import Choices
from lampseg.recording.graph import Graph

Shape = tuple[int, ...]


class SlabRunner:
    """One rank of those that cut every volume between them.

    It has the methods of the pipeline's runner, so that the trainer need not know which of them runs.

    Args:
        network: the whole network, on my device.
        mesh: replicas x ranks of a volume.
        spatial: of my replica.
        choices: of the plan.
        precision: float32, float64 or bfloat16 (mixed).
    """

    def __init__(
        self, network: nn.Module, *, mesh: Mesh, spatial: SpatialParallel, choices: Choices, precision: str
    ) -> None:
        assert mesh.alike
        assert choices.spatial
        self.network, self.mesh, self.spatial, self.choices, self.precision = network, mesh, spatial, choices, precision
        named = (*network.named_parameters(), *network.named_buffers())
        self._replicas = Replicas(network, mesh=mesh, stages={name: 0 for name, _ in named})
        self._cutting = Cutting(spatial, mesh=mesh)
        self._graphs: dict[Any, Graph] = {}
        self._agreed: set[Any] = set()
        self.waited = 0.0
        """Seconds of the last step in which this process waited for the sum of gradients."""
        self.busy = 0.0
        """Seconds of the last step in which it did not; waiting for halos counts as busy."""
        self.seconds: dict[int, tuple[float, float]] = {}
        """Of the last step: seconds in the forwards and in the backwards."""

    @property
    def yields_output(self) -> bool:
        """Whether labels of whole volumes, and losses, are given on this rank: one of each replica."""
        return self.mesh.device == 0

    def region(self, shape: Shape) -> tuple[slice, ...]:
        """My part of a volume of which a micro-batch (N, C, *spatial) consists: what has to be loaded."""
        return self._cutting.region(shape)

    def placed(self, mine: Tensor, shape: Shape) -> Tensor:
        """Marks my part of an image or of labels as a slab of a micro-batch of this shape."""
        return self._cutting.placed(mine, shape)

    def scatter(self, whole: Tensor | None, shape: Shape, *, dtype: torch.dtype) -> Tensor:
        """My part of an input that the first rank of the replica has; nobody else holds more than that.

        Args:
            whole: (N, C, *spatial) on the CPU, on the first rank; elsewhere None.
        """
        return self._cutting.scatter(whole, shape, dtype=dtype)

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
            shapes: of each micro-batch's input, whole, of all replicas; they may differ.
            load: gives my part (see `region`) of the input of micro-batch m, on my device.
            loss: gives the loss of micro-batch m from the network's output, which is a slab as its target must be
                (see `placed`); a scalar, the same on all ranks.
            seed: of the step, for random operations.

        Returns:
            The losses of my replica's micro-batches on its first rank, elsewhere nothing.

        Raises:
            UserError: there are more replicas than micro-batches, a volume has fewer planes than ranks, or the network
                goes another way on some ranks than on others.
            NotExactError: the network does what is not known to be exact on slabs.
        """
        block = self.mesh.share(len(shapes))
        self._replicas.begin([self._graph(shapes[m]) for m in block] if self.mesh.replicas > 1 else [])
        begun = time.perf_counter()
        forwards = backwards = 0.0
        losses: list[Tensor] = []
        for m in block:
            mine = load(m)
            started = time.perf_counter()
            self.spatial.begin()
            x = self.placed(mine, shapes[m])
            del mine
            with self.spatial.random(mix(seed, m)), self.spatial:
                with self._autocast(), recomputing(self.network, self.choices.recomputed, self.spatial):
                    output = self.network(x)
                value = loss(m, output)
                del output, x
                self._agree(shapes[m])
                halfway = time.perf_counter()
                self.spatial.backward(value)
            losses.append(value.detach())
            forwards, backwards = forwards + halfway - started, backwards + time.perf_counter() - halfway
        self._replicas.add(0)
        self._replicas.finish()
        self.waited = self._replicas.waited
        self.busy = time.perf_counter() - begun - self.waited
        self.seconds = {0: (forwards, backwards)}
        return [float(value) for value in losses] if self.yields_output else []

    @torch.no_grad()
    def predict(self, shapes: Sequence[Shape], *, load: Callable[[int], Tensor]) -> Iterator[Any]:
        """The network's output for my part of each volume, a slab; `load` as in `step`."""
        for m, shape in enumerate(shapes):
            mine = load(m)
            self.spatial.begin()
            x = self.placed(mine, shape)
            del mine
            with self.spatial.random(m), self.spatial, self._autocast():
                output = self.network(x)
            del x
            yield output

    def parts(
        self, shapes: Sequence[Shape], *, load: Callable[[int], Tensor], logits: Callable[[Any], Tensor]
    ) -> Iterator[Tensor]:
        """My part (see `region`) of each volume's logits, (1, C, *part), on my device.

        Args:
            logits: those (1, C, X, Y, Z) among what the network returns.
        """
        for output in self.predict(shapes, load=load):
            with self.spatial:  # a stack of several levels is taken apart here
                mine = self._cutting.checked(logits(output))
            del output
            yield mine
            del mine

    def check(self, shape: Shape) -> None:
        """Raises UserError if such a volume can't be cut, or the network can't take it; on every rank alike."""
        self.region(shape)
        kind = self.mesh.world.device.type
        record_for(self.network, shape=tuple(shape), precision=self.precision, device=kind, gradients=False)

    def labels(
        self, shapes: Sequence[Shape], *, load: Callable[[int], Tensor], logits: Callable[[Any], Tensor]
    ) -> Iterator[Tensor | None]:
        """Class indices (X, Y, Z) of each volume on the CPU, on the first rank of the replica; elsewhere None.

        Each rank finds those of its slab, so that nobody holds the logits of more than that. Arguments as of `parts`.
        """
        for shape, mine in zip(shapes, self.parts(shapes, load=load, logits=logits), strict=True):
            found = self._cutting.labels(mine, shape)
            del mine
            yield found

    def _agree(self, shape: Shape) -> None:
        """Raises UserError if ranks did not run the same functions, at the first volume of a shape."""
        key = tuple(shape), self.network.training
        if key in self._agreed:
            return
        with torch._C.DisableTorchFunction():
            traces = self.mesh.gather(self.spatial.trace)
        if len(set(traces)) > 1:
            raise UserError(
                f"{type(self.network).__name__} does not do the same on all slabs of a volume of shape {tuple(shape)}: "
                "it decides by the size that it sees (it pads an odd one, say). Use volumes of which every slab is "
                "a multiple of the network's total stride, or `parallel.mode: pipeline`"
            )
        self._agreed.add(key)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.mesh.world.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def _graph(self, shape: Shape) -> Graph:
        modes = tuple(module.training for module in self.network.modules())
        key = (tuple(shape), modes)
        if key not in self._graphs:
            kind = self.mesh.world.device.type
            self._graphs[key] = record_for(self.network, shape=tuple(shape), precision=self.precision, device=kind)
        return self._graphs[key]

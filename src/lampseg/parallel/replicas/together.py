"""What the replicas of a stage do together in a step: sum their gradients, join their running statistics."""

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from lampseg.parallel.mesh import Mesh
from lampseg.parallel.replicas.gradients import GradientSum
from lampseg.parallel.replicas.statistics import RunningStatistics
from lampseg.recording.graph import Graph


class Replicas:
    """My device's part; with one replica it does nothing.

    Where ranks of a replica share volumes, the gradient of each is a part, too: it is summed over all who hold the
    parameter. Running statistics are alike in a replica already.

    Args:
        stages: the stage of each parameter and buffer.
    """

    def __init__(self, network: nn.Module, *, mesh: Mesh, stages: Mapping[str, int]) -> None:
        self._network, self._mesh, self._stages = network, mesh, stages
        self._parts = mesh.column if mesh.holders is None else mesh.holders
        self._before: dict[str, Tensor] = {}
        self._sum: GradientSum | None = None
        self._statistics: RunningStatistics | None = None
        self.waited = 0.0
        """Seconds of the last step in which this process waited for other replicas."""

    def begin(self, graphs: Sequence[Graph]) -> None:
        """Before the first forward of a step whose micro-batches (mine) have these graphs.

        Raises:
            UserError: the network updates a buffer in a way that replicas can't join.
        """
        self.waited = 0.0
        if self._parts is None:
            return
        self._sum = GradientSum(self._parts)
        if self._mesh.column is not None:
            self._statistics = RunningStatistics(self._network, graphs, group=self._mesh.column)
        # What was there before is in every replica: it must not be added up.
        self._before = {n: p.grad for n, p in self._network.named_parameters() if p.grad is not None}
        for parameter in self._network.parameters():
            parameter.grad = None

    def add(self, stage: int) -> None:
        """After the last backward of one of my stages: its gradients are ready to be summed."""
        if self._sum is not None:
            named = self._network.named_parameters()
            self._sum.add([p for name, p in named if p.requires_grad and self._stages[name] == stage])

    def finish(self) -> None:
        """After the last backward of all: gradients and running statistics are those of the whole mini-batch."""
        if self._sum is None:
            return
        begun = time.perf_counter()
        self._sum.finish()
        if self._statistics is not None:
            self._statistics.join()
        with torch.no_grad():
            for name, parameter in self._network.named_parameters():
                if (before := self._before.pop(name, None)) is not None:
                    parameter.grad = before if parameter.grad is None else before.add_(parameter.grad)
        self._sum = self._statistics = None
        self.waited = time.perf_counter() - begun

"""What the loss costs the device that yields the output: time and memory, from a dry run on fake tensors."""

from functools import cache

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from lampseg.config import LossConfig
from lampseg.partition.cost import LossCost
from lampseg.partition.costed import LossCostOf
from lampseg.partition.graph import Graph
from lampseg.partition.hardware import Hardware
from lampseg.partition.tally import tally
from lampseg.training.loss import HybridLoss, mini_batch_loss
from lampseg.training.supervision import supervised_loss


@cache
def loss_cost(config: LossConfig, *, classes: int, hardware: Hardware, precision: str) -> LossCostOf:
    """Gives the cost of the loss of one micro-batch, whatever the network returns."""
    loss = HybridLoss((1.0,) * classes, config.focal, config.gamma)

    def cost(graph: Graph) -> LossCost:
        values = [graph.values[value] for value in graph.outputs]
        batch, size = values[0].shape[0], graph.input.shape[2:]

        def make() -> list[Tensor]:
            return [torch.empty(value.shape, dtype=value.dtype).requires_grad_() for value in values]

        def run(outputs: list[Tensor]) -> Tensor:
            target = torch.empty((batch, *size), dtype=torch.int64)
            annotated = torch.empty((batch, classes), dtype=torch.bool)
            terms = supervised_loss(loss, tree_unflatten(outputs, graph.output_spec), target, annotated, None)
            return mini_batch_loss(terms, batch=batch)

        found = tally(make, run)
        return LossCost(
            forward_seconds=sum(hardware.seconds(kernel, precision=precision) for kernel in found.forward),
            backward_seconds=sum(hardware.seconds(kernel, precision=precision) for kernel in found.backward),
            saved_bytes=found.saved_bytes,
            extra_bytes=found.extra_bytes,
        )

    return cost

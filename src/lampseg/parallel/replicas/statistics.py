"""Running statistics of replicas: joined to those of one device that ran all micro-batches in their order.

A norm that tracks statistics updates them once in a forward. With momentum a, the statistic r of a block of n updates
that begins with r0 ends as

    (1 - a)^n r0 + S,        S = what the block contributes

and after all blocks, one after the other, one device has

    (1 - a)^N r0 + sum over the blocks of (1 - a)^(updates after the block) S.

Without momentum r is the mean of all updates, of which r0 stands for the first b:  b r0 + S = (b + n) r  for a block,
and the end is  (b r0 + sum of S) / (b + N).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from lampseg.errors import UserError
from lampseg.recording.graph import Graph

_FUNCTIONS = {_BatchNorm.forward: "batch_norm", _InstanceNorm.forward: "instance_norm"}
_STATISTICS = ("running_mean", "running_var")


def contribution(
    end: Tensor, start: Tensor, *, updates: int, after: int, momentum: float | None, before: int
) -> Tensor:
    """What a block of updates adds to the joined statistic.

    Args:
        end, start: the statistic after and before the block.
        updates: in the block.
        after: in the blocks that follow.
        momentum: None for the mean of all updates.
        before: updates that `start` stands for (without momentum).
    """
    if momentum is None:
        return (before + updates) * end - before * start
    keep = 1.0 - momentum
    return float(keep**after) * (end - float(keep**updates) * start)


def joined(total: Tensor, start: Tensor, *, updates: int, momentum: float | None, before: int) -> Tensor:
    """The statistic after all blocks, from the sum of their contributions and the number of their updates."""
    if momentum is None:
        return (before * start + total) / (before + updates) if before + updates else start
    return float((1.0 - momentum) ** updates) * start + total


@dataclass
class _Tracked:
    """A norm whose statistics I hold."""

    module: _NormBase
    updates: int
    """In my block."""
    start: tuple[Tensor, ...]
    before: int

    @property
    def momentum(self) -> float | None:
        if self.module.momentum is not None:
            return float(self.module.momentum)
        # Without momentum instance norm updates nothing, nor does a batch norm that does not count.
        return None if _counter(self.module) is not None else 0.0


def _counter(module: _NormBase) -> Tensor | None:
    """The buffer in which a norm counts its updates, if it does."""
    return module.num_batches_tracked if isinstance(module, _BatchNorm) else None


class RunningStatistics:
    """Of one step: created before its first forward.

    Args:
        network: with the buffers of my stages on my device, those of others on meta.
        graphs: of my block of micro-batches.
        group: the same device of every replica, in the order of the blocks.

    Raises:
        UserError: the network updates a buffer in another way.
    """

    def __init__(self, network: nn.Module, graphs: Sequence[Graph], *, group: dist.ProcessGroup) -> None:
        self._group = group
        norms = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, _NormBase) and isinstance(module.running_mean, Tensor) and module.training
        }
        updates = dict.fromkeys(norms, 0)
        understood: set[str] = set()
        read: set[str] = set()
        for name, module in norms.items():
            if type(module).forward in _FUNCTIONS:
                understood.update(f"{name}.{key}".lstrip(".") for key in (*_STATISTICS, "num_batches_tracked"))
        for graph in graphs:
            for op in graph.operations:
                if "batch_norm" not in op.name and "instance_norm" not in op.name:
                    continue
                norm = norms.get(op.module)
                if norm is not None and _FUNCTIONS.get(type(norm).forward) == op.name:
                    updates[op.module] += f"{op.module}.running_mean".lstrip(".") in op.state
                else:
                    read.update(op.state)
        buffers = {name: buffer for name, buffer in network.named_buffers() if not buffer.is_meta}
        self._network = network
        self._refuse([name for graph in graphs for name in sorted(graph.written - understood)])
        # A norm that is called in another way may update the buffers it reads; seen only when it has.
        self._watched = {name: buffers[name].clone() for name in sorted(read & buffers.keys())}
        self._tracked = []
        # A cut may lie between the count and the norm: then another device holds the count.
        self._counted = [
            (counter, updates[name])
            for name, module in norms.items()
            if (counter := _counter(module)) is not None and not counter.is_meta and type(module).forward in _FUNCTIONS
        ]
        for name, module in norms.items():
            assert isinstance(module.running_mean, Tensor)
            if not module.running_mean.is_meta and type(module).forward in _FUNCTIONS:
                start = tuple(getattr(module, key).clone() for key in _STATISTICS)
                count = module.num_batches_tracked
                before = int(count) if module.momentum is None and count is not None else 0
                self._tracked.append(_Tracked(module, updates[name], start, before))

    def join(self) -> None:
        """After the last forward: every replica's buffers become those of one device.

        Raises:
            UserError: as above.
        """
        named = dict(self._network.named_buffers())
        self._refuse([name for name, start in self._watched.items() if not torch.equal(named[name], start)])
        known = [norm.updates for norm in self._tracked] + [updates for _, updates in self._counted]
        if not known:
            return
        size, mine = dist.get_world_size(self._group), dist.get_rank(self._group)
        some = self._tracked[0].start[0] if self._tracked else self._counted[0][0]
        counts = torch.zeros(size, len(known), dtype=torch.int64, device=some.device)
        counts[mine] = torch.tensor(known)
        dist.all_reduce(counts, group=self._group)
        after, total = counts[mine + 1 :].sum(0).tolist(), counts.sum(0).tolist()
        with torch.no_grad():
            for (counter, updates), everywhere in zip(self._counted, total[len(self._tracked) :], strict=True):
                counter.add_(everywhere - updates)
            if not self._tracked:
                return
            # In double precision: the difference of two near numbers is what is summed.
            parts = [
                contribution(
                    getattr(norm.module, key).double(),
                    start.double(),
                    updates=norm.updates,
                    after=later,
                    momentum=norm.momentum,
                    before=norm.before,
                ).flatten()
                for norm, later in zip(self._tracked, after)
                for key, start in zip(_STATISTICS, norm.start, strict=True)
            ]
            flat = torch.cat(parts)
            dist.all_reduce(flat, group=self._group)
            sums = iter(flat.split([part.numel() for part in parts]))
            for norm, updates in zip(self._tracked, total):
                for key, start in zip(_STATISTICS, norm.start, strict=True):
                    end = joined(
                        next(sums).view_as(start),
                        start.double(),
                        updates=updates,
                        momentum=norm.momentum,
                        before=norm.before,
                    )
                    getattr(norm.module, key).copy_(end)

    def _refuse(self, names: Sequence[str]) -> None:
        if names:
            raise UserError(
                f"{type(self._network).__name__} updates the buffer `{names[0]}` in its forward pass: several replicas "
                "would each have another one (only the running statistics of batch and instance norm can be joined). "
                "Use replicas: 1"
            )

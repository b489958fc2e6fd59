"""The mesh: how the processes of a world are arranged for one plan, replicas x devices."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch.distributed as dist

from lampseg.errors import UserError
from lampseg.parallel.world import World


@dataclass(frozen=True)
class Mesh:
    """The ranks as a table: a row is one replica of the pipeline, a column is one place in it.

    Rank = replica * devices + device. Everyone in a row works on the same micro-batches, everyone in a column holds
    the same parameters.
    """

    world: World
    replicas: int
    devices: int
    row: dist.ProcessGroup | None = None
    """Small objects on the CPU, within my replica; None with one replica: that is the world."""
    column: dist.ProcessGroup | None = None
    """Tensors, between the replicas; None with one replica."""
    alike: bool = False
    """Whether everyone in a row holds the whole network (and a slab of each volume), not a stage of it."""

    @cached_property
    def replica(self) -> int:
        return self.world.rank // self.devices

    @cached_property
    def device(self) -> int:
        """My place in the pipeline."""
        return self.world.rank % self.devices

    def rank_of(self, device: int) -> int:
        """The rank of a device of my replica."""
        return self.replica * self.devices + device

    def share(self, count: int, replica: int | None = None) -> range:
        """The micro-batches of one step that a replica (default: mine) runs: a block, the blocks as equal as possible.

        Raises:
            UserError: there are fewer than replicas.
        """
        if count < self.replicas:
            raise UserError(
                f"{self.replicas} replicas can't share {count} micro-batch(es): use more of them (a larger batch) or "
                f"at most {count} replica(s)"
            )
        index = self.replica if replica is None else replica
        each, more = divmod(count, self.replicas)
        begin = index * each + min(index, more)
        return range(begin, begin + each + (index < more))

    def spread(self, count: int) -> range:
        """Which of so many volumes my replica segments; some replicas may have none."""
        return range(self.replica, count, self.replicas)

    def gather(self, item: object) -> list[object]:
        """The item of everyone in my replica, in the order of the devices."""
        if self.row is None:
            return self.world.gather(item)
        items: list[object] = [None] * self.devices
        dist.all_gather_object(items, item, group=self.row)
        return items


class Meshes:
    """The meshes of one world. Each is made once: a process group takes time and, on a GPU, memory."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._made: dict[tuple[int, int], Mesh] = {}

    def of(self, *, replicas: int, devices: int, alike: bool = False) -> Mesh:
        """The mesh of a plan; called on every rank alike.

        Args:
            devices: of a replica: that share the network, or (alike) its volumes.

        Raises:
            UserError: the world has another number of processes.
        """
        world = self._world
        if replicas * devices != world.size:
            raise UserError(
                f"the plan is for {replicas} replica(s) of {devices} device(s), so {replicas * devices} process(es), "
                f"and there are {world.size}: plan again with --devices {world.size}"
            )
        if (replicas, devices) not in self._made:
            self._made[replicas, devices] = _arrange(world, replicas, devices)
        return replace(self._made[replicas, devices], alike=alike)


def _arrange(world: World, replicas: int, devices: int) -> Mesh:
    if replicas == 1:
        return Mesh(world, 1, devices)
    rows = [[replica * devices + device for device in range(devices)] for replica in range(replicas)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    # Every rank makes all groups, in this order, also those that it is no member of.
    row = _mine([dist.new_group(ranks, backend="gloo", timeout=world.timeout) for ranks in rows], rows, world.rank)
    column = _mine([dist.new_group(ranks, timeout=world.timeout) for ranks in columns], columns, world.rank)
    return Mesh(world, replicas, devices, row, column)


def _mine(groups: Sequence[dist.ProcessGroup], members: Sequence[Sequence[int]], rank: int) -> dist.ProcessGroup:
    return next(group for group, ranks in zip(groups, members, strict=True) if rank in ranks)

"""The mesh: how the processes of a world are arranged for one plan, replicas x places in the pipeline x slabs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.distributed as dist

from lampseg.errors import UserError
from lampseg.parallel.world import World


@dataclass(frozen=True)
class Mesh:
    """The ranks as a table: a row is one replica, a column is one device of it.

    Rank = replica * devices + device, device = place * sharing + slab. Everyone in a row works on the same
    micro-batches; everyone in a column, and those who share a place, hold the same parameters.
    """

    world: World
    replicas: int
    devices: int
    """Of a row."""
    row: dist.ProcessGroup | None = None
    """Small objects on the CPU, within my replica; None with one replica: that is the world."""
    column: dist.ProcessGroup | None = None
    """Tensors, between the replicas; None with one replica."""
    sharing: int = 1
    """How many ranks share a place of the pipeline: each has a slab of every volume."""
    holders: dist.ProcessGroup | None = None
    """Tensors, between all who hold my parameters; None: nobody else does."""
    team: "Mesh | None" = None
    """Those who share my place, as a mesh of their own; None: all of my row do, or nobody else."""

    @cached_property
    def replica(self) -> int:
        return self.world.rank // self.devices

    @cached_property
    def device(self) -> int:
        """My number in the row."""
        return self.world.rank % self.devices

    @property
    def alike(self) -> bool:
        """Whether everyone in a row holds the whole network (and a slab of each volume), not a stage of it."""
        return self.sharing == self.devices > 1

    @property
    def places(self) -> int:
        """In the pipeline."""
        return self.devices // self.sharing

    @property
    def place(self) -> int:
        """Mine in the pipeline."""
        return self.device // self.sharing

    @property
    def slab(self) -> int:
        """My number among those who share a place."""
        return self.device % self.sharing

    @property
    def together(self) -> "Mesh":
        """Those who share my place, each with a slab."""
        return self if self.team is None else self.team

    def rank_of(self, device: int) -> int:
        """The rank of a device of my replica."""
        return self.replica * self.devices + device

    def peer(self, place: int) -> int:
        """The rank at a place of my replica that has the same slab as I."""
        return self.rank_of(place * self.sharing + self.slab)

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
        self._made: dict[tuple[int, int, int], Mesh] = {}

    def of(self, *, replicas: int, devices: int, sharing: int = 1) -> Mesh:
        """The mesh of a plan; called on every rank alike.

        Args:
            devices: of a replica: they share the network, its volumes, or both.
            sharing: how many share a volume.

        Raises:
            UserError: the world has another number of processes.
        """
        world = self._world
        if replicas * devices != world.size:
            raise UserError(
                f"the plan is for {replicas} replica(s) of {devices} device(s), so {replicas * devices} process(es), "
                f"and there are {world.size}: plan again with --devices {world.size}"
            )
        key = replicas, devices, sharing
        if key not in self._made:
            plain = replicas, devices, 1
            if plain not in self._made:
                self._made[plain] = _arrange(world, replicas, devices)
            self._made[key] = _shared(self._made[plain], sharing)
        return self._made[key]


def _arrange(world: World, replicas: int, devices: int) -> Mesh:
    if replicas == 1:
        return Mesh(world, 1, devices)
    rows = [[replica * devices + device for device in range(devices)] for replica in range(replicas)]
    columns = [list(column) for column in zip(*rows, strict=True)]
    # Every rank makes all groups, in this order, also those that it is no member of.
    row = _mine([dist.new_group(ranks, backend="gloo", timeout=world.timeout) for ranks in rows], rows, world.rank)
    column = _mine([dist.new_group(ranks, timeout=world.timeout) for ranks in columns], columns, world.rank)
    return Mesh(world, replicas, devices, row, column, holders=column)


def _shared(mesh: Mesh, sharing: int) -> Mesh:
    """The mesh, each of whose places is shared by so many ranks."""
    assert mesh.devices % sharing == 0, "all places are shared by as many"
    world = mesh.world
    if sharing == 1:
        return mesh
    if sharing == mesh.devices:
        return replace(mesh, sharing=sharing, holders=dist.group.WORLD)
    ranks = torch.arange(world.size).view(mesh.replicas, -1, sharing)
    teams = ranks.view(-1, sharing).tolist()
    holders = ranks.movedim(1, 0).reshape(ranks.shape[1], -1).tolist()
    team = _mine([dist.new_group(team, backend="gloo", timeout=world.timeout) for team in teams], teams, world.rank)
    holder = _mine([dist.new_group(each, timeout=world.timeout) for each in holders], holders, world.rank)
    together = Mesh(world, len(teams), sharing, team, sharing=sharing)
    return replace(mesh, sharing=sharing, holders=holder, team=together)


def _mine(groups: Sequence[dist.ProcessGroup], members: Sequence[Sequence[int]], rank: int) -> dist.ProcessGroup:
    return next(group for group, ranks in zip(groups, members, strict=True) if rank in ranks)

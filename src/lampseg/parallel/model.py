"""A network split by a Plan over the ranks of a world: each holds the parameters of its stages, and they act as one."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lampseg.errors import UserError
from lampseg.parallel.exchange import gather_all, scatter_all
from lampseg.parallel.mesh import Mesh, Meshes
from lampseg.parallel.pipeline import PipelineRunner, places_of
from lampseg.parallel.spatial.around import StageSlabs
from lampseg.parallel.spatial.cutting import spatial_of
from lampseg.parallel.spatial.runner import SlabRunner
from lampseg.parallel.state import hold, named_state, owners_of
from lampseg.parallel.tiled.runner import TileRunner
from lampseg.parallel.world import World
from lampseg.partition import Plan, place, record_for


class ParallelModel:
    """Joins a network, a plan and the ranks.

    Args:
        network: the whole network with the same values on every rank; it is changed in place: afterwards each rank
            holds only its own stages' parameters and buffers, all others are on the meta device.
        plan: for this network; made for one shape, it serves every shape.
        training: the mode the plan was made in.
        stride: the network's total down-sampling along each axis; edges of slabs lie on its multiples.

    Raises:
        UserError: the plan is for another network or another number of processes.
    """

    def __init__(
        self,
        network: nn.Module,
        plan: Plan,
        *,
        world: World,
        training: bool = True,
        stride: Sequence[int] = (1, 1, 1),
    ) -> None:
        self.network, self.world, self._stride = network, world, tuple(stride)
        self._meshes = Meshes(world)
        self.mesh, self.runner = self._split(plan, training=training)

    def _split(self, plan: Plan, *, training: bool) -> tuple[Mesh, PipelineRunner | SlabRunner | TileRunner]:
        choices = plan.choices
        choices.check()
        mesh = self._meshes.of(
            replicas=choices.replicas, devices=choices.devices * choices.sharing, sharing=choices.sharing
        )
        mode = self.network.training
        self.network.train(training)
        spatial = spatial_of(mesh, choices.slabs, stride=self._stride) if choices.spatial else None
        around = StageSlabs(spatial).around(plan.input_shape) if spatial is not None and not mesh.alike else None
        graph = record_for(
            self.network,
            shape=plan.input_shape,
            precision=plan.precision,
            device=self.world.device.type,
            around=around,
        )
        self.network.train(mode)
        if graph.digest != plan.digest:
            raise UserError(
                f"the plan was made for another network than {type(self.network).__name__} (or another version of "
                "it): make it again"
            )
        if mesh.alike:
            assert spatial is not None
            named = named_state(self.network)
            self.owners, self.owned = dict.fromkeys(named, 0), list(named)
            hold(self.network, owned=self.owned, device=self.world.device)
            return mesh, SlabRunner(self.network, mesh=mesh, spatial=spatial, choices=choices, precision=plan.precision)
        if choices.tile:
            named = named_state(self.network)
            self.owners, self.owned = dict.fromkeys(named, 0), list(named)
            hold(self.network, owned=self.owned, device=self.world.device)
            return mesh, TileRunner(self.network, mesh=mesh, choices=choices, precision=plan.precision)
        placement = place(graph, plan.cuts)
        places = places_of(plan.choices)
        owners = owners_of(self.network, placement)
        self.owners = {name: places[stage] * mesh.sharing for name, stage in owners.items()}
        """The device (of each replica) that holds each parameter and buffer; with slabs, the first of those that do."""
        self.owned = [name for name, stage in owners.items() if places[stage] == mesh.place]
        """Names of the parameters and buffers that this rank holds."""
        hold(self.network, owned=self.owned, device=self.world.device)
        runner = PipelineRunner(
            self.network,
            placement,
            mesh=mesh,
            choices=plan.choices,
            pace=plan.pace,
            precision=plan.precision,
            spatial=spatial,
        )
        return mesh, runner

    @property
    def yields_output(self) -> bool:
        """Whether the network's output (with slabs: the labels) is on this rank: of each replica one has it."""
        return self.runner.yields_output

    def parameters(self) -> dict[str, nn.Parameter]:
        """My trainable parameters, by name."""
        mine = set(self.owned)
        return {name: p for name, p in self.network.named_parameters() if name in mine and p.requires_grad}

    def replan(self, plan: Plan) -> None:
        """Splits the network in another way; values go from their old owners to the new ones."""
        state = self.gather()
        self.mesh, self.runner = self._split(plan, training=True)
        self.load(state)

    def gather(self) -> dict[str, Tensor]:
        """All parameters and buffers on rank 0's CPU, each under its first name; elsewhere nothing."""
        named = named_state(self.network)
        mine = self.owned if self.mesh.slab == 0 else []
        return gather_all({name: named[name] for name in mine}, mesh=self.mesh)

    def load(self, state: dict[str, Tensor]) -> None:
        """Puts rank 0's tensors (all or some of the parameters and buffers) into their owners, in every replica."""
        mine = scatter_all(state, owners=self.owners, mesh=self.mesh)
        named = named_state(self.network)
        with torch.no_grad():
            for name, tensor in mine.items():
                named[name].copy_(tensor)

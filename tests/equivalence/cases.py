"""What the pipeline must equal one device on: networks, shapes, schedules; and how either runs a case."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from monai.networks.nets import AttentionUnet, BasicUNet, DynUNet, SegResNet
from monai.networks.nets import UNet as MonaiUNet
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lampseg.networks import SEUNet, UNet
from lampseg.parallel.mesh import Mesh
from lampseg.parallel.pipeline import PipelineRunner, places_of, runner
from lampseg.parallel.state import hold, named_state, owners_of
from lampseg.partition import Graph, costed, place
from lampseg.partition.plan import Choices, Recompute
from lampseg.partition.schedule import Pace, Schedule
from tests.equivalence.remembered import graphs, planned_once, plans, recorded_once
from tests.ranks import sub_mesh

CLASSES = 3
FEATURES = (4, 4, 8, 8, 8, 4)


def dyn_unet(**options: Any) -> nn.Module:
    return DynUNet(3, 1, CLASSES, [3] * 3, [1, 2, 2], [2, 2], filters=[4, 8, 8], **options)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "unet": lambda: UNet(out_channels=CLASSES, filters=4, depth=2),
    "unet-instance": lambda: UNet(out_channels=CLASSES, filters=4, depth=2, norm="instance", stem_stride=1),
    "seunet": lambda: SEUNet(out_channels=CLASSES, filters=4, depth=2),
    "dynunet": dyn_unet,
    "dynunet-deep": lambda: dyn_unet(deep_supervision=True, deep_supr_num=1),
    "basicunet": lambda: BasicUNet(3, 1, CLASSES, features=FEATURES),
    "basicunet-batch": lambda: BasicUNet(3, 1, CLASSES, features=FEATURES, norm="batch"),
    "basicunet-dropout": lambda: BasicUNet(3, 1, CLASSES, features=FEATURES, dropout=0.2),
    "monai-unet": lambda: MonaiUNet(3, 1, CLASSES, (4, 8, 8), (2, 2), num_res_units=1),
    "segresnet": lambda: SegResNet(3, 8, 1, CLASSES, blocks_down=(1, 1), blocks_up=(1,)),
    "attention-unet": lambda: AttentionUnet(3, 1, CLASSES, (4, 8, 8), (2, 2)),
}
MESHES = ((1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (4, 1), (2, 2))
"""Replicas and devices of each: as many processes as their product."""


@dataclass(frozen=True)
class Case:
    """One network run in one way."""

    network: str
    devices: int
    shapes: tuple[tuple[int, ...], ...]
    schedule: Schedule = "1f1b"
    recompute: tuple[Recompute, ...] = ("none",)
    """Of the stages in turn."""
    replicas: int = 1
    each: int = 2
    """Stages a device, if interleaved."""
    precision: str = "float64"
    planned_on: tuple[int, ...] | None = None
    """The plan's shape, if not that of the first micro-batch."""
    cut_seed: int | None = None
    """Cuts drawn at random among all allowed positions instead of planned ones."""
    frozen: str = ""
    """Parameters whose names begin so need no gradient."""
    rounds: int = 1
    """How often to train and then evaluate."""

    @property
    def stages(self) -> int:
        return self.devices * {"gpipe": 1, "1f1b": 1, "v": 2, "interleaved": self.each}[self.schedule]

    @property
    def mesh(self) -> tuple[int, int]:
        return self.replicas, self.devices

    @property
    def id(self) -> str:
        parts = [self.network, f"{self.replicas}x{self.devices}", f"M{len(self.shapes)}", self.schedule]
        parts += ["+".join(self.recompute)]
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        shown = ("precision", "cut_seed", "frozen", "rounds", "planned_on", "each")
        parts += [f"{name}={value}" for name in shown if (value := getattr(self, name)) != usual[name]]
        return "-".join(parts).replace(" ", "")


def build(case: Case) -> nn.Module:
    torch.manual_seed(7)
    network = NETWORKS[case.network]()
    for name, parameter in network.named_parameters():
        if case.frozen and name.startswith(case.frozen):
            parameter.requires_grad_(False)
    return network.double() if case.precision == "float64" else network.float()


def inputs(case: Case) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    dtype = torch.float64 if case.precision == "float64" else torch.float32
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in case.shapes]


def loss_of(output: Any, count: int) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for leaf in tree_leaves(output):
        logits = leaf.double().flatten(0, 1) if leaf.dim() == 6 else leaf.double()
        target = torch.arange(logits[:, 0].numel()).reshape(logits[:, 0].shape) % CLASSES
        total = total + F.cross_entropy(logits, target)
    return total / count


def one_device(case: Case) -> dict[str, Any]:
    """Plain PyTorch: no lampseg but for the network."""
    network, data = build(case), inputs(case)
    losses, outputs = [], []
    for _ in range(case.rounds):
        network.train()
        for x in data:
            term = loss_of(network(x), len(data))
            term.backward()
            losses.append(float(term.detach()))
        network.eval()
        with torch.no_grad():
            outputs += [network(x) for x in data]
    return {
        "losses": losses,
        "gradients": {key: p.grad for key, p in network.named_parameters()},
        "buffers": dict(network.named_buffers()),
        "outputs": outputs,
    }


def split_of(case: Case, network: nn.Module, graph: Graph) -> tuple[Choices, Pace]:
    """What a plan says of a case."""
    pace = Pace.even(case.stages)
    if case.cut_seed is not None:
        allowed = [at for at in range(1, len(graph.operations)) if at not in graph.forbidden]
        cuts = tuple(sorted(random.Random(case.cut_seed).sample(allowed, case.stages - 1)))
    else:
        shape = case.planned_on or case.shapes[0]
        plan = planned_once(network, shape=shape, devices=case.stages, precision=case.precision)
        cuts, pace = plan.cuts, plan.pace
    recompute = tuple(itertools.islice(itertools.cycle(case.recompute), case.stages))
    return Choices(case.devices, case.replicas, len(case.shapes), case.schedule, cuts, recompute), pace


def prepare(rank: int, size: int, cases: Sequence[Case]) -> None:
    """Every rank records and plans its share of the cases, for all."""
    runner.record_for = costed.record_for = recorded_once
    alike = {(c.network, c.precision, c.frozen): c for c in cases}
    for number, case in enumerate(alike.values()):
        if number % size == rank:
            network = build(case)
            same = [
                c for c in cases if (c.network, c.precision, c.frozen) == (case.network, case.precision, case.frozen)
            ]
            options: dict[str, Any] = {"precision": case.precision, "device": "cpu"}
            shapes = dict.fromkeys(shape for c in same for shape in c.shapes)
            for shape in shapes | dict.fromkeys(c.planned_on for c in same if c.planned_on):
                recorded_once(network.train(), shape=shape, **options)
            for c in same:
                split_of(c, network, recorded_once(network, shape=c.planned_on or c.shapes[0], **options))
            network.eval()
            for shape in shapes:
                recorded_once(network, shape=shape, gradients=False, **options)
    for known in (graphs, plans):
        everyones: list[Any] = [None] * size
        dist.all_gather_object(everyones, known)
        for found in everyones:
            known.update(found)


def split(mesh: Mesh, case: Case) -> dict[str, Any]:
    """The same on one device of several."""
    network, data = build(case), inputs(case)
    graph = recorded_once(network, shape=case.planned_on or case.shapes[0], precision=case.precision, device="cpu")
    choices, pace = split_of(case, network, graph)
    placement = place(graph, choices.cuts)
    places = places_of(choices)
    owned = [key for key, stage in owners_of(network, placement).items() if places[stage] == mesh.device]
    hold(network, owned=owned, device=mesh.world.device)
    mine = PipelineRunner(network, placement, mesh=mesh, choices=choices, pace=pace, precision=case.precision)
    losses: list[list[float]] = []
    outputs: list[list[Any]] = []
    block = mesh.share(len(data))
    for _ in range(case.rounds):
        network.train()
        losses.append(
            mine.step(case.shapes, load=lambda m: data[m], loss=lambda m, out: loss_of(out, len(data)), seed=1)
        )
        network.eval()
        outputs.append(list(mine.predict([case.shapes[m] for m in block], load=lambda n: data[block[n]])))
    assert all(tensor.is_meta == (key not in owned) for key, tensor in named_state(network).items())
    assert mine.seconds.keys() == {stage for stage, place in enumerate(places) if place == mesh.device}
    result: dict[str, Any] = {"replica": mesh.replica}
    result["gradients"] = {key: p.grad for key, p in network.named_parameters() if key in owned}
    result["buffers"] = {key: b for key, b in network.named_buffers() if key in owned}
    return result | ({"losses": losses, "outputs": outputs} if mine.yields_output else {})


def merged(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the devices hold together; the replicas must hold the same."""
    replicas: list[dict[str, Any]] = []
    for number in range(1 + max(result["replica"] for result in ranks)):
        whole: dict[str, Any] = {"gradients": {}, "buffers": {}}
        for result in ranks:
            if result["replica"] == number:
                for part in ("gradients", "buffers"):
                    assert not whole[part].keys() & result[part].keys(), "a tensor has two owners"
                    whole[part] |= result[part]
                whole |= {key: result[key] for key in ("losses", "outputs") if key in result}
        replicas.append(whole)
    first = replicas[0]
    for other in replicas[1:]:
        for part in ("gradients", "buffers"):
            torch.testing.assert_close(other[part], first[part], rtol=0, atol=0)
    for part in ("losses", "outputs"):
        rounds = zip(*(replica[part] for replica in replicas), strict=True)
        first[part] = [item for blocks in rounds for block in blocks for item in block]
    return first


def run_cases(rank: int, cases: Sequence[Case]) -> list[dict[str, Any] | None]:
    """On each rank: every case that it has a part in."""
    meshes = {shape: sub_mesh(*shape) for shape in MESHES}
    prepare(rank, 4, cases)
    return [split(mesh, case) if (mesh := meshes[case.mesh]) is not None else None for case in cases]

"""What the pipeline must equal one device on: networks, shapes, schedules; and how either runs a case."""

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import AttentionUnet, BasicUNet, DynUNet, SegResNet
from monai.networks.nets import UNet as MonaiUNet
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lampseg.networks import SEUNet, UNet
from lampseg.parallel.pipeline import PipelineRunner, actions, runner
from lampseg.parallel.state import hold, named_state, owners_of
from lampseg.parallel.world import World
from lampseg.partition import Graph, Training, make_plan, place, planner, record_for
from lampseg.partition.cost import Recompute, Schedule
from tests.ranks import sub_world

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
FULL = ("unet", "unet-instance", "seunet", "dynunet", "dynunet-deep", "basicunet", "basicunet-batch")
"""These run with every number of stages and of micro-batches."""
EVEN = ((1, 1, 8, 16, 8),) * 4
MIXED = ((1, 1, 8, 16, 24), (2, 1, 16, 8, 8), (1, 1, 24, 8, 16), (1, 1, 8, 16, 8))
# BasicUNet halves four times and pads odd sizes itself, so that its operations differ between these shapes.
LARGE = ((1, 1, 32, 16, 16),) * 4
ODD = ((1, 1, 33, 19, 16), (1, 1, 18, 32, 17), (2, 1, 16, 33, 16), (1, 1, 37, 16, 17))


@dataclass(frozen=True)
class Case:
    """One network run in one way."""

    network: str
    stages: int
    shapes: tuple[tuple[int, ...], ...]
    schedule: Schedule = "1f1b"
    recompute: Recompute = "none"
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
    def id(self) -> str:
        parts = [self.network, f"K{self.stages}", f"M{len(self.shapes)}", self.schedule, self.recompute]
        extra = {"precision": "float64", "cut_seed": None, "frozen": "", "rounds": 1, "planned_on": None}
        parts += [f"{name}={value}" for name, usual in extra.items() if (value := getattr(self, name)) != usual]
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


def cuts_of(case: Case, network: nn.Module, graph: Graph) -> Sequence[int]:
    if case.cut_seed is not None:
        allowed = [at for at in range(1, len(graph.operations)) if at not in graph.forbidden]
        return sorted(random.Random(case.cut_seed).sample(allowed, case.stages - 1))
    shape = case.planned_on or case.shapes[0]
    training = Training(len(case.shapes), case.schedule, case.recompute)
    plan = make_plan(network, shape=shape, stages=case.stages, training=training, precision=case.precision)
    return plan.cuts


_graphs: dict[Any, Graph] = {}


def recorded_once(network: nn.Module, **options: Any) -> Graph:
    """`record_for`, remembered: most cases record what others did already, and it takes longer than the run."""
    parameters = [(name, p.dtype, p.requires_grad) for name, p in network.named_parameters()]
    # What its printed form does not show, such as whether it returns the outputs for deep supervision.
    kinds = bool | int | float | str | tuple
    settings = [(key, value) for m in network.modules() for key, value in vars(m).items() if isinstance(value, kinds)]
    key = (repr(network), str(parameters), str(settings), str(options))
    if key not in _graphs:
        _graphs[key] = record_for(network, **options)
    return _graphs[key]


def split(world: World, case: Case) -> dict[str, Any]:
    """The same as one stage of a pipeline."""
    network, data = build(case), inputs(case)
    graph = recorded_once(
        network, shape=case.planned_on or case.shapes[0], precision=case.precision, device=world.device.type
    )
    placement = place(graph, cuts_of(case, network, graph))
    owned = [key for key, owner in owners_of(network, placement).items() if owner == world.rank]
    hold(network, owned=owned, device=world.device)
    stage = PipelineRunner(
        network,
        placement,
        world=world,
        precision=case.precision,
        schedule=case.schedule,
        recompute=case.recompute,
    )
    losses: list[float] = []
    outputs: list[Any] = []
    for _ in range(case.rounds):
        network.train()
        losses += stage.step(case.shapes, load=lambda m: data[m], loss=lambda m, out: loss_of(out, len(data)), seed=1)
        network.eval()
        outputs += list(stage.predict(case.shapes, load=lambda m: data[m]))
    assert all(tensor.is_meta == (key not in owned) for key, tensor in named_state(network).items())
    result: dict[str, Any] = {"owned": owned}
    result["gradients"] = {key: p.grad for key, p in network.named_parameters() if key in owned}
    result["buffers"] = {key: b for key, b in network.named_buffers() if key in owned}
    return result | ({"losses": losses, "outputs": outputs} if world.last else {})


def merged(ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the stages hold together."""
    whole: dict[str, Any] = {"gradients": {}, "buffers": {}}
    owned: list[str] = []
    for result in ranks:
        owned += result["owned"]
        whole["gradients"] |= result["gradients"]
        whole["buffers"] |= result["buffers"]
        whole |= {key: result[key] for key in ("losses", "outputs") if key in result}
    assert len(owned) == len(set(owned)), "a tensor has two owners"
    return whole


def run_cases(rank: int, cases: Sequence[Case]) -> list[dict[str, Any] | None]:
    """On each rank: every case that it has a stage of."""
    worlds = {size: sub_world(size) for size in (1, 2, 3, 4)}
    runner.record_for = planner.record_for = recorded_once
    return [split(world, case) if (world := worlds[case.stages]) is not None else None for case in cases]


def full_cases(name: str) -> list[Case]:
    """K = 1, 2, 3, 4 and M = 1, 2, 4; both schedules where they differ most; recompute in turn."""
    even, mixed = (LARGE, ODD) if name.startswith("basicunet") else (EVEN, MIXED)
    cases = []
    turn = itertools.cycle(("none", "all", "all_but_last"))
    for stages, count in itertools.product((1, 2, 3, 4), (1, 2, 4)):
        schedules: tuple[Schedule, ...] = ("gpipe", "1f1b") if count == 4 and stages > 1 else ("1f1b",)
        if count == 2 and stages in (1, 3):
            schedules = ("gpipe",)
        for schedule in schedules:
            shapes = mixed if count == 4 else even[:count]
            cases.append(Case(name, stages, shapes, schedule, next(turn)))  # type: ignore[arg-type]
    return cases


def differ(stages: int, count: int) -> bool:
    """Whether the two schedules are not the same."""
    order = [
        [actions(s, stage=k, stages=stages, micro_batches=count) for k in range(stages)] for s in ("gpipe", "1f1b")
    ]
    return order[0] != order[1]


def special_cases() -> list[Case]:
    shapes: dict[str, Any] = {"shapes": MIXED}
    return [
        # Every recompute mode with BatchNorm, four stages and four micro-batches; a round more.
        *(Case("unet", 4, schedule="gpipe", recompute=mode, rounds=2, **shapes) for mode in ("none", "all_but_last")),
        Case("unet", 4, recompute="all", rounds=2, **shapes),
        Case("basicunet-batch", 3, (*ODD[:2],), recompute="all_but_last", rounds=2),
        # A plan made for one shape, used for others; with other operations too.
        Case("seunet", 3, planned_on=(1, 1, 32, 32, 32), **shapes),
        Case("basicunet", 3, ODD[:2], planned_on=(1, 1, 32, 32, 32)),
        # No gradient for the encoder: nothing comes back to the stages that hold it.
        *(Case("unet", k, frozen="encoders", recompute=mode, **shapes) for k, mode in ((2, "none"), (4, "all"))),
        *(Case(name, k, EVEN[:2]) for name in ("monai-unet", "segresnet", "attention-unet") for k in (2, 4)),
        # Cuts where no planner would put them; with four stages, skips pass over two others.
        *(
            Case(name, k, MIXED[:2], schedule, mode, cut_seed=seed)  # type: ignore[arg-type]
            for seed, (name, k, schedule, mode) in enumerate(
                itertools.product(
                    ("unet", "seunet", "dynunet-deep", "attention-unet"),
                    (3, 4),
                    ("gpipe", "1f1b"),
                    ("none", "all"),
                )
            )
        ),
        Case("unet", 3, precision="float32", **shapes),
    ]


def dropout_cases() -> list[Case]:
    """The first is the reference: our own run on one device."""
    modes: tuple[Recompute, ...] = ("none", "all_but_last", "all")
    split_cases = (Case("basicunet-dropout", k, ODD[:2], recompute=mode) for k in (2, 4) for mode in modes)
    return [Case("basicunet-dropout", 1, ODD[:2]), *split_cases]


def bfloat16_cases() -> list[Case]:
    return [Case("unet", k, EVEN[:2], precision="bfloat16") for k in (1, 2)]


EXACT = [*(case for name in FULL for case in full_cases(name)), *special_cases()]
CASES = [*EXACT, *dropout_cases(), *bfloat16_cases()]

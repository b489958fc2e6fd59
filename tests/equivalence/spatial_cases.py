"""What slabs must equal the whole on: networks and meshes; and how a rank runs a case."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._pytree import tree_leaves

from lampseg.networks import SEUNet, UNet
from lampseg.parallel.spatial import SpatialParallel
from lampseg.parallel.spatial.checkpointed import recomputing
from lampseg.training.loss import HybridLoss
from lampseg.training.supervision import supervised_loss
from tests.equivalence.any_network import CLASSES, NETWORKS, build, without_dropout

OURS: dict[str, Callable[[], nn.Module]] = {
    "ours-batch": lambda: UNet(out_channels=CLASSES, filters=4, depth=2, norm="batch"),
    "ours-instance": lambda: UNet(out_channels=CLASSES, filters=4, depth=2, norm="instance", stem_stride=1),
    "ours-group": lambda: UNet(out_channels=CLASSES, filters=8, depth=2, norm="group"),
    "ours-se": lambda: SEUNet(out_channels=CLASSES, filters=4, depth=2),
}
ATTENTION = ("unetr", "swinunetr", "swinunetr2d")
CONVOLUTIONAL = tuple(name for name in NETWORKS if name not in ATTENTION)
STRIDES = {"basicunet": 16, "vnet": 16, "ours-batch": 8, "ours-instance": 4, "ours-group": 8, "ours-se": 8}
MESHES: dict[str, tuple[tuple[int, ...], dict[str, int]]] = {
    "2": ((2,), {"x": 2}),
    "4": ((4,), {"x": 3}),
    "2x2": ((2, 2), {"x": 2, "y": 4}),
}


@dataclass(frozen=True)
class Run:
    """One network on one mesh."""

    network: str
    mesh: str
    precision: str = "float64"
    overlapped: bool = False
    shape: tuple[int, ...] | None = None
    evaluate: bool = False
    recomputed: tuple[str, ...] = ()
    """Modules that run again in the backward."""

    @property
    def id(self) -> str:
        parts = [self.network, self.mesh, self.precision]
        parts += ["overlapped"] * self.overlapped + ["eval"] * self.evaluate
        parts += ["recomputed"] * bool(self.recomputed)
        return "-".join(parts + (["x".join(map(str, self.shape[2:]))] if self.shape else []))


def network_of(name: str, precision: str = "float64") -> nn.Module:
    """`NAME-dropout`: with its dropout, which on slabs draws other numbers than on the whole."""
    torch.manual_seed(7)
    if name.endswith("-dropout"):
        network = build(name.removesuffix("-dropout"), dropout=0.3)
    else:
        network = OURS[name]() if name in OURS else without_dropout(build(name))
    return network.to(torch.float64 if precision == "float64" else torch.float32)


def stride_of(name: str) -> int:
    return STRIDES.get(name.split("-")[0], STRIDES.get(name, 4))


def shape_of(run: Run) -> tuple[int, ...]:
    """Each rank has at least one plane on every level, and the slabs are uneven where they may be."""
    if run.shape is not None:
        return run.shape
    step = stride_of(run.network)
    return {
        "2": (2, 1, 3 * step, step, 2 * step),
        "4": (1, 1, step, 6 * step, step),
        "2x2": (1, 1, 3 * step, step, 2 * step),
    }[run.mesh]


def data_of(run: Run) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shape = shape_of(run)
    dtype = torch.float64 if run.precision == "float64" else torch.float32
    x = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, CLASSES, (shape[0], *shape[2:]), generator=generator)


def loss_of(output: Any, target: Tensor) -> Tensor:
    """The paper's, of every level."""
    hybrid = HybridLoss((0.5, 1.0, 2.0))
    return supervised_loss(hybrid, output, target, None, None).mean()


def run_whole(run: Run) -> dict[str, Any]:
    """On one process."""
    network, (x, target) = network_of(run.network, run.precision).train(not run.evaluate), data_of(run)
    x.requires_grad_()
    with _autocast(run):
        output = network(x)
    loss = loss_of(output, target)
    loss.backward()
    assert x.grad is not None
    return results_of(network, [leaf.detach() for leaf in tree_leaves(output)], x.grad, loss)


def run_slabs(rank: int, runs: list[Run]) -> list[dict[str, Any]]:
    """On this rank, of as many as the largest mesh has."""
    meshes = {name: _mesh(name) for name in MESHES}
    return [_one(run, meshes[run.mesh]) for run in runs]


def _mesh(name: str) -> Any:
    sizes, dims = MESHES[name]
    ranks = torch.arange(4).view(-1, *sizes)
    names = ("copy", *dims)
    return init_device_mesh("cpu", tuple(ranks.shape), mesh_dim_names=names)


def _one(run: Run, mesh: Any) -> dict[str, Any]:
    network, (x, target) = network_of(run.network, run.precision).train(not run.evaluate), data_of(run)
    dims = MESHES[run.mesh][1]
    spatial = SpatialParallel(mesh, dims, stride=stride_of(run.network), overlapped=run.overlapped)
    with spatial:
        spatial.begin()
        mine = spatial.shard(x).requires_grad_()
        labels = spatial.shard(target, dims={name: dim - 1 for name, dim in dims.items()})
        with _autocast(run), recomputing(network, run.recomputed, spatial):
            output = network(mine)
        loss = loss_of(output, labels)
        spatial.backward(loss)
    spatial.sum_gradients(network.parameters())
    assert mine.grad is not None
    with torch.no_grad():
        grad = spatial.unshard(spatial.slab(mine.grad, spatial.layout(x.shape)))
        outputs = [spatial.unshard(leaf) for leaf in tree_leaves(output)]
    return results_of(network, outputs, grad, loss)


def _autocast(run: Run) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bfloat16")


def results_of(network: nn.Module, outputs: list[Tensor], grad: Tensor, loss: Tensor) -> dict[str, Any]:
    return {
        "outputs": [output.detach().clone() for output in outputs],
        "input": grad.clone(),
        "loss": float(loss),
        "gradients": {n: p.grad for n, p in network.named_parameters() if p.grad is not None},
        "buffers": {name: copy.deepcopy(buffer) for name, buffer in network.named_buffers()},
    }


def loss_functions() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Of logits (N, C, ...) and labels (N, ...)."""
    from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss

    weight = torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64)

    def monai(loss: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda logits, labels: loss(logits, labels[:, None])

    return {
        "dice": monai(DiceLoss(to_onehot_y=True, softmax=True)),
        "dice-batch": monai(DiceLoss(to_onehot_y=True, sigmoid=True, batch=True, squared_pred=True)),
        "dice-ce": monai(DiceCELoss(to_onehot_y=True, softmax=True, weight=weight)),
        "dice-focal": monai(DiceFocalLoss(to_onehot_y=True, softmax=True)),
        "cross-entropy": lambda logits, labels: F.cross_entropy(logits, labels, weight, ignore_index=1),
        "bce": lambda logits, labels: F.binary_cross_entropy_with_logits(
            logits, F.one_hot(labels, CLASSES).movedim(-1, 1).double()
        ),
        "mse": lambda logits, labels: F.mse_loss(logits[:, 0], labels.double(), reduction="sum"),
    }

"""What is not known to be exact on slabs is refused by name, with the line that calls it and what to do."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lampseg.errors import UserError
from lampseg.parallel.spatial import NotExactError, SpatialParallel
from lampseg.parallel.spatial.layout import layout_of

SHAPE = (2, 4, 8, 6, 6)


def on_slab(run: Callable[[Tensor], Any], *, shape: tuple[int, ...] = SHAPE) -> Any:
    """As the middle one of three ranks would; nothing is sent."""
    spatial = SpatialParallel.rehearsal({"x": 2}, {"x": 2})
    with spatial:
        return run(spatial.shard(torch.randn(shape)))


UNKNOWN: dict[str, Callable[[Tensor], Any]] = {
    "amax": lambda x: x.amax((2, 3, 4)),
    "max": lambda x: x.max(),
    "argmax": lambda x: x.argmax(2),
    "cumsum": lambda x: x.cumsum(2),
    "cumprod": lambda x: torch.cumprod(x, 3),
    "flip": lambda x: x.flip(2),
    "roll": lambda x: torch.roll(x, 1, 2),
    "softmax": lambda x: x.softmax(2),
    "sort": lambda x: x.sort(2),
    "topk": lambda x: x.flatten(2).topk(3),
    "median": lambda x: x.median(),
    "norm": lambda x: x.norm(),
    "unique": lambda x: x.unique(),
    "std": lambda x: x.std((2, 3, 4)),
    "var": lambda x: torch.var(x),
    "linear": lambda x: F.linear(x, torch.ones(3, 6)),
    "matmul": lambda x: x.flatten(2) @ x.flatten(2).transpose(1, 2),
    "einsum": lambda x: torch.einsum("ncxyz,ncxyz->nc", x, x),
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "grid_sample": lambda x: F.grid_sample(x, torch.zeros(2, 8, 6, 6, 3), align_corners=False),
    "adaptive_max_pool3d": lambda x: F.adaptive_max_pool3d(x, 1),
    "adaptive_avg_pool3d": lambda x: F.adaptive_avg_pool3d(x, 2),
    "layer_norm": lambda x: F.layer_norm(x, x.shape[1:]),
    "unfold": lambda x: x.unfold(2, 2, 1),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x.flatten(0, 1), 2),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "nonzero": lambda x: x.nonzero(),
    "item": lambda x: x.sum(1)[0, 0, 0, 0].item(),
    "numpy": lambda x: x.detach().numpy(),
    "cdist": lambda x: torch.cdist(x, x),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_functions(name: str) -> None:
    with pytest.raises(NotExactError, match=r"is not known to be exact on slabs") as refused:
        on_slab(UNKNOWN[name])
    text = str(refused.value)
    assert re.search(r"test_spatial_refusals\.py:\d+\)", text), "it names the line"
    assert "parallel.mode: pipeline" in text or "use" in text, "it says what to do"


@pytest.mark.parametrize("name", ["amax", "cumsum", "sort", "std", "norm"])
def test_the_same_functions_of_replicas_are_nobodys_business(name: str) -> None:
    def run(x: Tensor) -> Any:
        return UNKNOWN[name](torch.ones(SHAPE))

    on_slab(run)


OPTIONS: dict[str, tuple[str, Callable[[Tensor], Any]]] = {
    "circular padding": ("circular", lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), "circular")),
    "padding of voxels": ("flattened", lambda x: F.pad(x.flatten(2), (1, 1))),
    "part": ("takes a part of dimension 2", lambda x: x[:, :, 1:]),
    "plane": ("takes a part of dimension 2", lambda x: x[:, :, 0]),
    "mask": ("indexed by a tensor", lambda x: x[x > 0]),
    "cat": ("along dimension 2", lambda x: torch.cat([x, x], 2)),
    "split": ("along dimension 2", lambda x: x.split(1, 2)),
    "made in its shape": ("made in the shape of the slab", lambda x: x * torch.rand(x.shape)),
    "a list in its shape": (
        "made in the shape of the slab",
        lambda x: x + torch.tensor([[[float(n)]] for n in range(4)]),
    ),
    "drawn in its shape": ("made in the shape of the slab", lambda x: x * torch.empty(x.shape).uniform_()),
    "index array": ("indexed by", lambda x: x[np.array([0, 1])]),
    "scatter reduce": ("with reduce", lambda x: x.scatter(1, (x > 0).long(), x, reduce="add")),
    "fraction": ("no whole number", lambda x: F.interpolate(x[..., :5], scale_factor=(2, 1, 1.5))),
    "torch's batch norm": ("batch_norm", lambda x: torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, False)),
    "written into": ("every rank has all of", lambda x: torch.rand(SHAPE).add_(x)),
    "indices": ("indices", lambda x: F.max_pool3d(x, 2, return_indices=True)),
    "ceil": ("beyond the volume", lambda x: F.max_pool3d(x, 3, 2, ceil_mode=True)),
    "uncounted": ("does not count", lambda x: F.avg_pool3d(x, 3, 1, 1, count_include_pad=False)),
    "no whole factor": ("no whole factor", lambda x: F.interpolate(x, scale_factor=1.5)),
    "bicubic": ("mode area", lambda x: F.interpolate(x, scale_factor=2, mode="area")),
    "even same": ("uneven", lambda x: F.conv3d(x, torch.ones(1, 4, 2, 2, 2), padding="same")),
    "bits": ("another type", lambda x: x.view(torch.int32)),
    "unflattened": ("flattened before", lambda x: x.flatten(2).flatten(1)),
    "several": ("several dimensions", lambda x: x.view(2, 4, 2, 2, 6, 6)),
    "different wholes": ("different size", lambda x: x + F.max_pool3d(x, 2)),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_known_functions_with_options_that_are_not(name: str) -> None:
    says, run = OPTIONS[name]
    with pytest.raises(NotExactError, match=says):
        on_slab(run)


def test_too_few_planes() -> None:
    with pytest.raises(UserError, match=r"1 planes along dimension 2 can't be shared by 2 ranks"):
        on_slab(lambda x: x, shape=(1, 1, 1, 8, 8))


def test_padding_where_sizes_of_slabs_say_nothing() -> None:
    """Of 12 planes at a stride of 8 one rank has 8, the other 4: a network that pads odd levels can't know."""
    for planes, fits in ((12, False), (24, True)):
        spatial = SpatialParallel.rehearsal({"x": 2}, {"x": 2}, stride=8)
        with spatial:
            x = spatial.shard(torch.randn(1, 1, planes, 8, 8))
            if fits:
                assert F.pad(x, (0, 0, 0, 0, 1, 1)).shape[2] == 8 + 1
                continue
            with pytest.raises(NotExactError, match="no multiples of the network's total stride"):
                F.pad(x, (0, 0, 0, 0, 1, 1))


def test_a_mesh_that_does_not_fit() -> None:
    class Mesh:
        mesh_dim_names = ("z",)

    for dims, says in (({"x": 2}, "has no axis `x`"), ({"z": 1}, "begin at 2"), ({"z": 2, "x": 2}, "no axis `x`")):
        with pytest.raises(UserError, match=says):
            SpatialParallel(Mesh(), dims)  # type: ignore[arg-type]


def test_backward_of_a_slab() -> None:
    spatial = SpatialParallel.rehearsal({"x": 2}, {"x": 2})
    with spatial:
        x = spatial.shard(torch.randn(SHAPE)).requires_grad_()
        with pytest.raises(UserError, match="reduce it"):
            spatial.backward(x * 2)


def test_a_module_that_keeps_its_place() -> None:
    """Constants made inside are of the slab's shape: a position would be another one in the whole."""

    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.arange(x.shape[2]).view(-1, 1, 1)

    with pytest.raises(NotExactError, match="made in the shape of the slab"):
        on_slab(Positions())


def test_masks_are_alike_on_an_axis_that_does_not_cut_the_tensor() -> None:
    """A level that was put together along one axis is the same on all its ranks, and must stay so."""
    masks = []
    for where in range(2):
        spatial = SpatialParallel.rehearsal({"x": 2, "y": 2}, {"x": 2, "y": 3}, place={"x": 1, "y": where})
        with spatial:
            x = spatial.slab(torch.ones(1, 1, 4, 8, 8), spatial.layout((1, 1, 8, 8, 8))[:1])
            masks.append(F.dropout(x, 0.5))
    assert torch.equal(*masks)


def test_a_positional_option_is_not_taken_for_keepdim() -> None:
    layout = layout_of(on_slab(lambda x: x.var(1, True), shape=(2, 4, 12, 6, 6)))
    assert [shard.dim for shard in layout] == [1]

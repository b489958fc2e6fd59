"""Folding: two halves give what one tile gives, and a CPU's slow path is left where that is faster."""

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from lampseg.parallel.spatial.convolution import Arguments
from lampseg.parallel.tiled.folded import Folded, how_to
from lampseg.parallel.tiled.forecast import tile_choices, tile_plan
from lampseg.partition.costed import cost_network


def shapes() -> Iterator[tuple[int, int, int, int, int]]:
    """Kernel, stride, padding, dilation and rows: also odd ones, of which the halves are not alike."""
    for kernel, stride, padding, dilation, rows in itertools.product(
        (1, 2, 3, 5), (1, 2, 3), (0, 1, 2), (1, 2), (5, 8)
    ):
        reach = dilation * (kernel - 1)
        if padding <= reach and rows + 2 * padding - reach - 1 >= stride:  # two rows of outputs at least
            yield kernel, stride, padding, dilation, rows


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "rows"), shapes())
def test_halves_are_the_whole(kernel: int, stride: int, padding: int, dilation: int, rows: int) -> None:
    torch.manual_seed(0)
    args = Arguments((1, stride, 1), (0, padding, 1), (1, dilation, 1), False, (0, 0, 0), 1)
    x = torch.randn(1, 3, 4, rows, 5, dtype=torch.float64)
    weight = torch.randn(2, 3, 3, kernel, 3, dtype=torch.float64)
    bias = torch.randn(2, dtype=torch.float64)
    folded = Folded(args, kernel, rows)
    out = args.run(x, weight, bias)
    torch.testing.assert_close(folded.run(x, weight, bias), out, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(out)
    pairs = zip(
        folded.gradients(grad, x, weight, [2], [True] * 3),
        args.gradients(grad, x, weight, [2], [True] * 3),
        strict=True,
    )
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_only_what_is_not_asked_for_is_missing() -> None:
    args, x, weight = Arguments((1,) * 3, (0, 1, 1), (1,) * 3, False, (0,) * 3, 1), torch.ones(1, 2, 3, 4, 5), None
    weight = torch.ones(2, 2, 3, 3, 3)
    found = Folded(args, 3, 4).gradients(args.run(x, weight, None), x, weight, None, [False, True, False])
    assert [each is not None for each in found] == [False, True, False]


@pytest.mark.parametrize(
    ("shape", "kernel", "dtype", "folds"),
    [
        ((1, 8, 10, 64, 64), 3, torch.float32, True),
        ((1, 8, 60, 64, 64), 3, torch.float32, False),  # the whole volume is not on the slow path
        ((2, 8, 10, 64, 64), 3, torch.float32, False),  # nor are two samples
        ((1, 1, 10, 64, 64), 3, torch.float32, False),  # one channel
        ((1, 8, 10, 64, 64), 1, torch.float32, False),  # a kernel of one voxel
        ((1, 8, 10, 64, 64), 3, torch.float64, False),  # which knows the slow path only
        ((1, 8, 10, 3, 64), 3, torch.float32, False),  # one row of outputs
    ],
)
def test_where_it_is_faster(shape: tuple[int, ...], kernel: int, dtype: torch.dtype, folds: bool) -> None:
    args = Arguments((1,) * 3, (0,) * 3, (1,) * 3, False, (0,) * 3, 1)
    weight = torch.ones(4, shape[1], *[kernel] * 3, dtype=dtype)
    assert isinstance(how_to(args, torch.ones(shape, dtype=dtype), weight), Folded) == folds


def test_thin_tiles_stay_off_the_slow_path() -> None:
    """A step in tiles took 3 to 4 times as long as a plain one: every tile was on it, at 4 GFLOP/s instead of 30."""
    network = nn.Sequential(nn.Conv3d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1))
    model = cost_network(network, shape=(1, 8, 64, 64, 64))
    thick, thin = (tile_plan(model, tile_choices(tile, micro_batches=1)) for tile in (64, 16))
    assert thin.stages[0].flops < 1.05 * thick.stages[0].flops
    assert thin.devices[0].library_bytes < thick.devices[0].library_bytes

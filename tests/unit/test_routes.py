"""Routes: the messages of two stages match without tags, forward and backward."""

import itertools
import random

import pytest
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from lampseg.networks import SEUNet, UNet
from lampseg.parallel.pipeline.routes import Route, Routes, routes_of
from lampseg.partition import Graph, place, record

SHAPE = (1, 1, 16, 16, 16)


def graphs() -> list[Graph]:
    frozen = UNet(filters=2, depth=2)
    frozen.encoders.requires_grad_(False)
    deep = DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[2, 4, 4], deep_supervision=True)
    return [
        record(network, shape=SHAPE) for network in (UNet(filters=2, depth=2), SEUNet(filters=2, depth=2), frozen, deep)
    ]


def sent(routes: Routes) -> list[Route]:
    return [route for ready in sorted(routes.sends) for route in routes.sends[ready]]


@pytest.mark.parametrize("graph", graphs(), ids=["unet", "seunet", "frozen", "dynunet"])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_what_one_sends_another_receives_in_that_order(graph: Graph, stages: int) -> None:
    allowed = [at for at in range(1, len(graph.operations)) if at not in graph.forbidden]
    draw = random.Random(stages)
    for _ in range(10):
        placement = place(graph, sorted(draw.sample(allowed, stages - 1)))
        routes = [routes_of(placement, stage) for stage in range(stages)]
        for a, b in itertools.permutations(range(stages), 2):
            forward = [route for route in sent(routes[a]) if route.target == b]
            assert forward == [route for route in routes[b].receives if route.source == a]
            assert len({route.value.id for route in forward}) == len(forward), "a value went twice"
            backward = [route for route in routes[b].gradients_out if route.source == a]
            assert backward == [route for route in routes[a].gradients_in if route.target == b]
            assert backward == [route for route in reversed(forward) if route.value.carries_gradient]
            assert not forward or a < b
        for stage, own in enumerate(routes):
            last = (*placement.cuts, len(graph.operations))[stage]
            for ready, going in own.sends.items():
                assert all(route.source == stage and ready < last for route in going)
            assert own.last_read.keys() == {route.value.id for route in own.receives}


def test_frozen_values_bring_no_gradient_back() -> None:
    graph = graphs()[2]
    first_decoder = next(op.index for op in graph.operations if op.module.startswith("decoders"))
    routes = routes_of(place(graph, (first_decoder,)), 0)
    assert sent(routes)
    assert routes.gradients_in == ()


def test_a_value_goes_after_its_last_write_and_once_to_each_reader() -> None:
    class Written(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x + 1
            view = y[:1]
            y.mul_(2)  # y and the view are final only now
            z = y + 1
            return z + y + view

    graph = record(Written(), shape=(2, 2))
    assert [op.name for op in graph.operations] == ["add", "__getitem__", "mul_", "add", "add", "add"]
    placement = place(graph, (3, 4))
    routes = routes_of(placement, 0)
    assert {ready: [(r.value.id, r.target) for r in going] for ready, going in routes.sends.items()} == {
        2: [((1, 0), 2), ((2, 0), 1), ((2, 0), 2)]
    }
    assert routes_of(placement, 2).last_read == {(2, 0): 4, (3, 0): 4, (1, 0): 5}


def test_outputs_are_kept_to_the_end() -> None:
    class Early(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x + 1
            return y, y * 2

    assert routes_of(place(record(Early(), shape=(2, 3)), (1,)), 1).last_read == {(0, 0): 2}

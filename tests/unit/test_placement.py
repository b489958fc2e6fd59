"""Placements: which stage has what, and how a plan is carried over to another shape or mode."""

import pytest
import torch.nn.functional as F
from monai.networks.nets import BasicUNet, DynUNet
from torch import Tensor, nn

from lampseg.errors import UserError
from lampseg.networks import UNet
from lampseg.partition import make_plan, place, record, transfer

SHAPE = (1, 1, 32, 32, 32)


def unet() -> nn.Module:
    return UNet(filters=4, depth=2)


def test_stages_hold_consecutive_operations_and_their_parameters() -> None:
    graph = record(unet(), shape=SHAPE)
    cuts = (graph.cut_positions[3], graph.cut_positions[8])
    placement = place(graph, cuts)
    assert placement.stages == 3
    assert [placement.stage_of(at) for at in (-1, 0, cuts[0] - 1, cuts[0], cuts[1] - 1, cuts[1])] == [0, 0, 0, 1, 1, 2]
    owners = placement.owners()
    assert set(owners) == {name for name, _ in (*unet().named_parameters(), *unet().named_buffers())}
    for op in graph.operations:
        for name in op.state:
            assert owners[name] == placement.stage_of(op.index)


def test_outputs_go_to_the_last_stage() -> None:
    class Early(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = x + 1
            return y, (y * 2).relu()

    placement = place(record(Early(), shape=(2, 3)), (1, 2))
    assert placement.consumers() == {(0, 0): (1, 2), (1, 0): (2,)}


@pytest.mark.parametrize("cuts", [(0,), (8, 8), (8, 3), (999,)])
def test_impossible_cuts(cuts: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="must rise"):
        place(record(unet(), shape=SHAPE), cuts)


def test_no_cut_before_an_in_place_update() -> None:
    graph = record(unet(), shape=SHAPE)
    inplace = next(op.index for op in graph.operations if op.name == "leaky_relu")
    with pytest.raises(UserError, match=f"cut {inplace} .*leaky_relu"):
        place(graph, (inplace,))


@pytest.mark.parametrize(
    ("network", "shapes"),
    [
        (unet(), [(2, 1, 16, 16, 40)]),
        (BasicUNet(3, 1, 2, features=(4, 4, 8, 8, 8, 4), dropout=0.1), [(1, 1, 33, 35, 32), (1, 1, 48, 32, 17)]),
        (DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[2, 4, 4], deep_supervision=True), [(1, 1, 8, 8, 8)]),
    ],
    ids=["unet", "basicunet", "dynunet"],
)
def test_parameters_keep_their_stage(network: nn.Module, shapes: list[tuple[int, ...]]) -> None:
    network.train()
    planned = place(record(network, shape=SHAPE), make_plan(network, shape=SHAPE, devices=3).cuts)
    for mode in (True, False):
        network.train(mode)
        for shape in [SHAPE, *shapes]:
            moved = transfer(planned, record(network, shape=shape, gradients=mode))
            owners = moved.owners()
            assert owners == {name: stage for name, stage in planned.owners().items() if name in owners}
            assert len(owners) > 10
            assert not moved.graph.forbidden.intersection(moved.cuts)


def test_the_same_operations_keep_the_same_cuts() -> None:
    network = unet()
    for cut in (at for at in range(1, 30) if at not in record(network, shape=SHAPE).forbidden):
        planned = place(record(network, shape=SHAPE), (cut,))
        assert transfer(planned, record(network, shape=(1, 1, 16, 16, 24))).cuts == (cut,)


class _Dropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(1, 2, 1), nn.Conv1d(2, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.a(x), 0.5, self.training)
        return self.b(F.relu(x, inplace=True))


def test_a_cut_that_eval_mode_forbids_moves() -> None:
    network = _Dropout()
    planned = place(record(network, shape=(1, 1, 4)), (1,))  # between the convolution and dropout
    network.eval()
    graph = record(network, shape=(1, 1, 4))
    assert 1 in graph.forbidden  # there dropout returns its input, which the ReLU overwrites
    moved = transfer(planned, graph)
    assert moved.owners() == planned.owners()


def test_a_stage_may_have_nothing_to_do_in_eval_mode() -> None:
    network = _Dropout()
    planned = place(record(network, shape=(1, 1, 4)), (1, 3))
    network.eval()
    moved = transfer(planned, record(network, shape=(1, 1, 4)))
    assert moved.stages == 3
    assert moved.owners() == planned.owners()


def test_another_order_of_modules_can_not_be_carried_over() -> None:
    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(1, 1, 1), nn.Conv1d(1, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.b(x)) if x.shape[-1] > 4 else self.b(self.a(x))

    planned = place(record(Turning(), shape=(1, 1, 4)), (2,))
    with pytest.raises(UserError, match="Make a plan for this shape"):
        transfer(planned, record(Turning(), shape=(1, 1, 8)))

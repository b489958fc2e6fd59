"""The cost model: bytes of a network computed by hand, and its tables against naive sets on real networks."""

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import DynUNet
from torch import Tensor, nn

from lampseg.networks import SEUNet, UNet
from lampseg.partition import Graph, record
from lampseg.partition.cost import IntervalCosts, Rates, Regime
from lampseg.recording.graph import INPUT
from lampseg.recording.kernel import Kernel
from lampseg.recording.tally import Tally


class ByHand(nn.Module):
    """Every saved tensor can be counted: x is (1, 2, 4, 4), float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, 1, bias=False)
        self.b = nn.Conv2d(1, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.a(x), inplace=True)  # the convolution keeps x (128 bytes), the ReLU its output, in y's memory
        z = y[:, :1]  # a view
        return self.b(z) * y  # b keeps z; the product y again, and b's result: 128 bytes more


def graph_of(network: nn.Module, shape: tuple[int, ...]) -> tuple[Graph, IntervalCosts]:
    graph = record(network, shape=shape, backward=True)
    parameters = dict(network.named_parameters())
    state = {name: t.numel() * t.element_size() for name, t in (*parameters.items(), *network.named_buffers())}
    trainable = frozenset(name for name, parameter in parameters.items() if parameter.requires_grad)
    return graph, IntervalCosts(graph, state_bytes=state, trainable=trainable, rates=RATES)


def test_bytes_by_hand() -> None:
    graph, costs = graph_of(ByHand(), (1, 2, 4, 4))
    assert [op.name for op in graph.operations] == ["conv2d", "relu", "__getitem__", "conv2d", "mul"]
    assert costs.starts == (0, 3, 4)
    map_ = 2 * 16 * 4
    x, y, b = map_, map_, map_
    expected = {(0, 1): x + y, (1, 2): y, (2, 3): y + b, (0, 2): x + y, (1, 3): y + b, (0, 3): x + y + b}
    assert {span: costs.saved[span] for span in expected} == expected
    # What a stage receives: z (half a map) for b; y and b's result for the product; nothing for the first.
    received = {(0, 3): 0, (1, 2): map_ // 2, (2, 3): 2 * map_, (1, 3): map_ // 2 + map_}
    assert {span: costs.received[span] for span in received} == received
    assert costs.state[0, 1] == 2 * 2 * 4
    assert costs.state[0, 3] == 2 * 2 * 4 + 2 * 4
    assert costs.flops[0, 1] == 2 * 16 * 2 * 2 * 2  # forward, and the weight's gradient


RATES = Rates(
    kernel=lambda kernel: kernel.flops / 1e3 + kernel.nbytes,
    workspace=lambda kernel: 0.0 if kernel.kind != "convolution" else 7.0,
    transfer=lambda nbytes: 5.0 + nbytes / 10,
)


def test_time_by_hand() -> None:
    _, costs = graph_of(ByHand(), (1, 2, 4, 4))
    # Multiply: read b's result and y, write; no FLOPs are counted for it.
    assert costs.forward[2, 3] == pytest.approx(3 * 128)
    # b: its input, weight and output.
    flops, moved = 2 * 16 * 2, 64 + 8 + 128
    assert costs.forward[1, 2] == pytest.approx(flops / 1e3 + moved)
    # Its backward: gradient of the output, input and weight, and the gradients of both.
    assert costs.backward[1, 2] == pytest.approx(2 * flops / 1e3 + 128 + 2 * (64 + 8))
    none, again = costs.seconds(again=False), costs.seconds(again=True)
    assert again[1, 2] - none[1, 2] == pytest.approx(costs.forward[1, 2])
    # z and, for the product, y and b's result: a message each.
    assert costs.transfer[1, 2] == pytest.approx(5.0 + 64 / 10)
    assert costs.transfer[2, 3] == pytest.approx(2 * 5.0 + 2 * 128 / 10)


def test_peak_by_hand() -> None:
    graph, costs = graph_of(ByHand(), (1, 2, 4, 4))
    span, state = (1, 3), 8  # b's weight: the parameter, its gradient, one number of the optimizer for each
    extras = [max(op.forward_extra, op.backward_extra) for op in graph.operations]
    # Walking through: what is saved up to b, or up to the product, and what each needs beside.
    walk = max(costs.saved[1, 2] + extras[3], costs.saved[1, 3] + extras[4])
    assert costs.walk[span] == walk
    regime = Regime(6, (6,))
    for held in (1, 6):
        peak = costs.peak_bytes(regime, held=held, again=False)
        assert peak[span] == 3 * state + (held - 1) * costs.saved[span] + walk + costs.received[span] + 7
    peak = costs.peak_bytes(regime, held=6, again=True)
    assert peak[span] == 3 * state + 6 * costs.received[span] + walk + costs.received[span] + 7


def test_the_loss_is_part_of_the_last_operation() -> None:
    graph, without = graph_of(ByHand(), (1, 2, 4, 4))
    loss = Tally((Kernel("exp", "pointwise", 0.0, 100),), (Kernel("mul", "pointwise", 0.0, 300),), 1000, 5000)
    network = ByHand()
    state = {name: t.numel() * t.element_size() for name, t in network.named_parameters()}
    costs = IntervalCosts(graph, state_bytes=state, trainable=frozenset(state), rates=RATES, loss=loss)
    assert costs.forward[2, 3] - without.forward[2, 3] == pytest.approx(100)
    assert costs.backward[0, 3] - without.backward[0, 3] == pytest.approx(300)
    assert costs.saved[1, 3] - without.saved[1, 3] == 1000
    assert costs.walk[1, 3] == costs.saved[1, 3] + 5000
    for name in ("forward", "backward", "saved", "walk"):
        assert (getattr(costs, name)[:, :3] == getattr(without, name)[:, :3]).all(), name


def test_frozen_parameters_have_no_gradient() -> None:
    network = ByHand()
    network.a.requires_grad_(False)
    _, costs = graph_of(network, (1, 2, 4, 4))
    assert costs.state[0, 1] == 16
    assert costs.trainable[0, 1] == 0


def test_asking_for_a_size_costs_nothing() -> None:
    graph, _ = graph_of(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)), (1, 2, 4, 4))
    for op in graph.operations:
        assert (op.bytes_moved == 0) == op.plain, op.name
    norm = next(op for op in graph.operations if op.name == "batch_norm")
    assert norm.bytes_moved < 3 * 128, "a read and a write of the map, and the few numbers of the channels"


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (UNet(filters=2, depth=2), (1, 1, 16, 16, 16)),
        (SEUNet(filters=2, depth=2), (2, 1, 16, 16, 16)),
        (DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[2, 4, 4], deep_supervision=True), (1, 1, 16, 16, 8)),
    ],
    ids=["unet", "seunet", "dynunet"],
)
def test_tables_equal_naive_sets(network: nn.Module, shape: tuple[int, ...]) -> None:
    graph, costs = graph_of(network, shape)
    state = {name: t.numel() * t.element_size() for name, t in (*network.named_parameters(), *network.named_buffers())}
    ends = (*costs.starts, len(graph.operations))
    for i in range(0, costs.count, 3):
        for j in range(i + 1, costs.count + 1, 2):
            inside = graph.operations[ends[i] : ends[j]]
            held = range(ends[i], ends[j])
            assert costs.saved[i, j] == sum(s.nbytes for s in graph.saved if any(op in held for op in s.savers))
            names = {name for op in inside for name in op.state}
            assert costs.state[i, j] == sum(state[name] for name in names)
            reads = {value for op in inside for value in op.reads}
            if j == costs.count:
                reads |= set(graph.outputs)
            received = {v for v in reads if v[0] < ends[i] and not (v[0] == INPUT and i == 0)}
            assert costs.received[i, j] == sum(graph.values[value].nbytes for value in received)
            assert costs.flops[i, j] == pytest.approx(sum(op.flops + op.backward_flops for op in inside))
            before, walk = 0, 0
            for op in inside:  # at the granularity of positions: what is saved by then, and the largest extra there
                end = next(e for e in ends[1:] if e > op.index)
                before = sum(s.nbytes for s in graph.saved if any(k in range(ends[i], end) for k in s.savers))
                walk = max(walk, before + max(op.forward_extra, op.backward_extra))
            assert costs.walk[i, j] == walk


def test_saved_bytes_grow_with_the_volume_only() -> None:
    network = UNet(filters=2, depth=2, norm="instance")
    one, eight = (
        sum(storage.nbytes for storage in record(network, shape=(1, 1, *size)).saved)
        for size in ((16, 16, 16), (32, 32, 32))
    )
    assert 7.5 < eight / one < 8.01


def test_mixed_precision_saves_less() -> None:
    network = UNet(filters=4, depth=2)
    full, mixed = (
        sum(storage.nbytes for storage in record(network, shape=(1, 1, 32, 32, 32), autocast=dtype).saved)
        for dtype in (None, torch.bfloat16)
    )
    assert mixed < 0.8 * full

"""The dry run of the backward: whose kernels they are, what they compute, and the memory alive in every operation."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import AttentionUnet, DynUNet, SegResNet
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lampseg.errors import UserError
from lampseg.networks import SEUNet, UNet
from lampseg.partition import Graph, record
from lampseg.recording.graph import Operation
from lampseg.recording.kernel import Kernel
from tests.equivalence import awkward, awkward_state
from tests.equivalence.awkward import ThreeConvolutions
from tests.unit.live_peaks import predicted_peaks, real_peaks

SHAPE = (2, 4, 6)


class Network(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x)))


def graph_of(between: Any, **options: Any) -> Graph:
    return record(Network(between), shape=SHAPE, backward=True, **options)


def names(kernels: tuple[Kernel, ...]) -> list[str]:
    return [kernel.name for kernel in kernels]


def only(op: Operation) -> tuple[Kernel, Kernel]:
    (forward,), (backward,) = op.kernels, op.backward_kernels
    return forward, backward


# Kernels.


def test_every_kernel_belongs_to_its_operation() -> None:
    graph = graph_of(lambda _net, x: x.relu().exp())
    assert [names(op.kernels) for op in graph.operations] == [["convolution"], ["relu"], ["exp"], ["convolution"]]
    assert [names(op.backward_kernels) for op in graph.operations] == [
        ["convolution_backward"],
        ["threshold_backward"],
        ["mul"],
        ["convolution_backward"],
    ]
    for op in graph.operations:
        assert not any(kernel.backward for kernel in op.kernels)
        assert all(kernel.backward for kernel in op.backward_kernels)
        assert op.flops == sum(kernel.flops for kernel in op.kernels)
        assert op.bytes_moved == sum(kernel.nbytes for kernel in op.kernels)
        assert op.backward_flops == sum(kernel.flops for kernel in op.backward_kernels)


def test_a_convolution_by_hand() -> None:
    graph = graph_of(lambda _net, x: x)
    flops = 2 * (2 * 6) * 3 * 4 * 4  # multiply and add: voxels, taps, channels
    x, weight, bias = 2 * 4 * 6 * 4, 4 * 4 * 3 * 4, 4 * 4
    forward, backward = only(graph.operations[0])
    assert forward == Kernel("convolution", "convolution", flops, 2 * x + weight + bias, (4, 4), 12, 3)
    # The input needs no gradient: reads the gradient, x and the weight, returns the gradients of weight and bias.
    moved = 2 * x + weight + weight + bias
    assert backward == Kernel("convolution_backward", "convolution", flops, moved, (4, 4), 12, 3, backward=True)
    _, backward = only(graph.operations[1])
    assert backward.flops == 2 * flops
    assert backward.nbytes == moved + x


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_channels_are_those_of_a_group(groups: int, transposed: bool) -> None:
    kind = nn.ConvTranspose3d if transposed else nn.Conv3d
    network = nn.Sequential(kind(4, 8, (2, 2, 1), (2, 2, 1), groups=groups), kind(8, 4, 1, groups=groups))
    graph = record(network, shape=(2, 4, 8, 8, 6), backward=True)
    forward, backward = only(graph.operations[0])
    assert (forward.channels, forward.taps) == ((4 // groups, 8 // groups), 4)
    assert forward.voxels == 2 * (8 * 8 * 6 if transposed else 4 * 4 * 6)
    assert forward.flops == 2 * forward.voxels * 4 * 4 * 8 / groups
    assert forward.kind == backward.kind == ("transposed_convolution" if transposed else "convolution")
    assert (backward.channels, backward.taps, backward.voxels) == (forward.channels, forward.taps, forward.voxels)
    assert backward.flops == forward.flops  # of the weight alone
    forward, backward = only(graph.operations[1])
    assert backward.flops == 2 * forward.flops  # of the weight and of the input


class _KindsOfKernels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.Sequential(
            nn.BatchNorm3d(4), nn.InstanceNorm3d(4, affine=True), nn.GroupNorm(2, 4), nn.LayerNorm(4)
        )
        self.pools = nn.Sequential(nn.MaxPool3d(2), nn.AvgPool3d(2, 1), nn.AdaptiveAvgPool3d(2))
        self.linear = nn.Linear(8, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pools(self.norms(x))
        x = F.interpolate(F.interpolate(x, scale_factor=2), scale_factor=1.5, mode="trilinear").flatten(2)
        x = x[:, :, :48].reshape(1, 4, 6, 8)
        x = F.scaled_dot_product_attention(x, x, x)
        x = self.linear(x)
        return x @ x.mT + 1


def test_kinds_of_kernels_forward_and_backward() -> None:
    graph = record(_KindsOfKernels(), shape=(1, 4, 4, 4, 4), backward=True)
    kinds: dict[str, set[tuple[str, str]]] = {}
    for op in graph.operations:
        for kernel in (*op.kernels, *op.backward_kernels):
            if kernel.kind != "pointwise":
                kinds.setdefault(kernel.kind, set()).add((op.name, "backward" if kernel.backward else "forward"))
    both = ("forward", "backward")
    expected = {
        "norm": ("batch_norm", "instance_norm", "group_norm", "layer_norm"),
        "pool": ("boolean_dispatch", "max_pool3d", "avg_pool3d", "adaptive_avg_pool3d"),
        "resample": ("interpolate",),
        "matmul": ("linear", "matmul", "scaled_dot_product_attention"),
    }
    assert kinds.keys() == expected.keys()
    for kind, ops in expected.items():
        assert kinds[kind] <= {(op, way) for op in ops for way in both}, kind
        assert {way for _, way in kinds[kind]} == set(both), kind
    assert len(kinds["norm"]) == 8
    assert len(kinds["matmul"]) == 6
    linear = next(op for op in graph.operations if op.name == "linear")
    (product,) = (kernel for kernel in linear.kernels if kernel.kind == "matmul")
    assert (product.channels, product.flops) == ((8, 6), 2 * 4 * 6 * 8 * 6)
    attention = next(op for op in graph.operations if op.name == "scaled_dot_product_attention")
    (product,) = (kernel for kernel in attention.kernels if kernel.kind == "matmul")
    assert (product.channels, product.flops) == ((8, 6), 2 * (2 * 4 * 6 * 6 * 8))


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (SEUNet(filters=2, depth=2), (2, 1, 16, 16, 16)),
        (DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[2, 4, 4], deep_supervision=True), (1, 1, 16, 16, 8)),
        (AttentionUnet(3, 1, 2, (4, 8, 8), (2, 2)), (2, 1, 16, 16, 16)),
    ],
    ids=["seunet", "dynunet", "attentionunet"],
)
def test_flops_of_a_real_forward_and_backward(network: nn.Module, shape: tuple[int, ...]) -> None:
    graph = record(network, shape=shape, backward=True)
    with FlopCounterMode(display=False) as counter:
        sum(t.mean() for t in tree_leaves(network(torch.randn(shape)))).backward()
    assert sum(op.flops + op.backward_flops for op in graph.operations) == counter.get_total_flops()


# Whose backward is whose.


def test_gradients_of_a_value_that_is_read_twice_add_up_in_the_earlier_reader() -> None:
    graph = graph_of(lambda _net, x: x.exp() * x.sigmoid())
    assert [op.name for op in graph.operations] == ["conv1d", "exp", "sigmoid", "mul", "conv1d"]
    assert names(graph.operations[1].backward_kernels) == ["mul", "add"]
    assert names(graph.operations[2].backward_kernels) == ["sigmoid_backward"]
    assert names(graph.operations[3].backward_kernels) == ["mul", "mul"]


def test_a_shared_parameter_is_added_up_in_its_earlier_reader() -> None:
    graph = graph_of(lambda net, x: net.b(x))
    assert [names(op.backward_kernels) for op in graph.operations] == [
        ["convolution_backward"],
        ["convolution_backward", "add", "add"],
        ["convolution_backward"],
    ]


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradients[0] * 2 + x.cos() * 0


def test_the_backward_of_a_custom_function_is_its_own() -> None:
    graph = graph_of(lambda _net, x: _Doubled.apply(x).relu())  # type: ignore[no-untyped-call]
    op = graph.operations[1]
    assert op.name == "_Doubled.apply"
    assert names(op.backward_kernels) == ["mul", "cos", "mul", "add"]


def test_a_backward_through_views_and_in_place_writes_is_recorded() -> None:
    def between(_net: nn.Module, x: Tensor) -> Tensor:
        y = x * 1
        y[:, :2].mul_(3)
        return y[:, 1:].relu_().sum(1, keepdim=True) + y

    graph = graph_of(between)
    assert names(next(op for op in graph.operations if op.name == "mul_").backward_kernels).count("mul") == 1
    assert names(next(op for op in graph.operations if op.name == "relu_").backward_kernels)


def test_a_frozen_encoder_has_no_backward() -> None:
    network = Network(lambda _net, x: x.relu())
    network.a.requires_grad_(False)
    graph = record(network, shape=SHAPE, backward=True)
    assert [names(op.backward_kernels) for op in graph.operations] == [[], [], ["convolution_backward"]]
    assert [op.backward_flops for op in graph.operations] == [0, 0, graph.operations[2].flops]


def test_without_gradients_there_is_no_backward() -> None:
    network = Network(lambda _net, x: x.relu()).eval()
    graph = record(network, shape=SHAPE, gradients=False, backward=True)
    assert all(not op.backward_kernels and not op.backward_extra and not op.backward_flops for op in graph.operations)
    map_ = 2 * 4 * 6 * 4
    assert [op.forward_extra for op in graph.operations] == [2 * map_, 3 * map_, 3 * map_]


def test_every_output_brings_a_gradient() -> None:
    class Two(Network):
        def forward(self, x: Tensor) -> Any:
            x = self.a(x)
            return {"early": x.exp(), "late": [self.b(x), x.argmax(1)]}

    graph = record(Two(None), shape=SHAPE, backward=True)
    assert names(graph.operations[1].backward_kernels) == ["mul", "add"]
    assert names(graph.operations[2].backward_kernels) == ["convolution_backward"]


# What stays as it was.


def test_the_same_graph_with_and_without() -> None:
    network = UNet(filters=2, depth=2)
    plain, full = (record(network, shape=(1, 1, 16, 16, 16), backward=backward) for backward in (False, True))
    assert (plain.digest, plain.signature, plain.saved) == (full.digest, full.signature, full.saved)
    for one, two in zip(plain.operations, full.operations, strict=True):
        assert (one.flops, one.bytes_moved, one.kernels) == (two.flops, two.bytes_moved, two.kernels)
        assert not one.backward_kernels
        assert one.forward_extra == one.backward_extra == 0
    assert [op.backward_flops for op in plain.operations] == [op.backward_flops for op in full.operations]


def test_the_network_is_left_as_it_was() -> None:
    network = SegResNet(3, 8, norm="BATCH")
    for parameter in network.parameters():
        parameter.grad = torch.ones_like(parameter)
    gradients = [parameter.grad for parameter in network.parameters()]
    before = copy.deepcopy(network.state_dict())
    record(network, shape=(1, 1, 16, 16, 16), backward=True)
    for name, tensor in before.items():
        assert torch.equal(network.state_dict()[name], tensor), name
    for parameter, gradient in zip(network.parameters(), gradients, strict=True):
        assert parameter.grad is gradient
        assert not parameter._post_accumulate_grad_hooks
        assert gradient is not None
        assert gradient.eq(1).all()


def test_a_network_that_does_something_else_in_its_second_pass_is_refused() -> None:
    class Counts(Network):
        passes = 0

        def forward(self, x: Tensor) -> Tensor:
            self.passes += 1
            x = self.a(x)
            return self.b(x.relu() if self.passes == 1 else x.exp())

    with pytest.raises(UserError, match="second forward pass differs from the first, where it calls `exp`"):
        record(Counts(None), shape=SHAPE, backward=True)


# Memory.


class ByHand(nn.Module):
    """Every tensor can be counted: x is (1, 2, 4, 4), float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)  # keeps x
        s = y * 2  # keeps nothing
        z = s.sigmoid()  # keeps z
        return z + y  # keeps nothing


def test_extra_by_hand() -> None:
    graph = record(ByHand(), shape=(1, 2, 4, 4), backward=True)
    map_ = 2 * 16 * 4
    assert sorted((storage.nbytes, storage.savers) for storage in graph.saved) == [(map_, (0,)), (map_, (2,))]
    # Beside x and later z: y; y and s; y and s; y, s and the result.
    assert [op.forward_extra for op in graph.operations] == [map_, 2 * map_, 2 * map_, 3 * map_]
    # The sum's backward runs no kernel. The sigmoid's: beside x and z the gradient of the result, which waits for y
    # as well, and the gradient of s. The product's: beside x the waiting one, that of s, and that of y, which is then
    # added to the waiting one. The convolution's: beside x the gradient of y, and that of the weight.
    assert [op.backward_extra for op in graph.operations] == [map_ + 2 * 2 * 4, 3 * map_, 2 * map_, 0]


def test_a_temporary_in_a_variable_is_extra_while_it_is_there() -> None:
    def held(_net: nn.Module, x: Tensor) -> Tensor:
        y = x.detach() * 2
        x = x.relu()
        del y
        return x.relu()

    graph = graph_of(held)
    assert [op.name for op in graph.operations] == ["conv1d", "detach", "mul", "relu", "relu", "conv1d"]
    # Not saved are: the first convolution's result, also while it is doubled, with the double, and during the first
    # ReLU; then nothing but the last convolution's result.
    assert [op.forward_extra // (2 * 4 * 6 * 4) for op in graph.operations] == [1, 1, 2, 2, 0, 1]


NETWORKS = {
    "unet": (lambda: UNet(filters=2, depth=2), (1, 1, 16, 16, 16)),
    "seunet": (lambda: SEUNet(filters=2, depth=2), (2, 1, 16, 16, 16)),
    "dynunet": (
        lambda: DynUNet(3, 1, 2, [3] * 3, [1, 2, 2], [2, 2], filters=[2, 4, 4], deep_supervision=True, res_block=True),
        (1, 1, 16, 16, 8),
    ),
    "segresnet": (lambda: SegResNet(3, 8), (1, 1, 16, 16, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["float32", "bfloat16"])
def test_saved_and_extra_are_the_peak_of_a_real_pass(name: str, autocast: torch.dtype | None) -> None:
    build, shape = NETWORKS[name]
    network = build()
    predicted = predicted_peaks(record(network, shape=shape, autocast=autocast, backward=True))
    real = real_peaks(network, torch.randn(shape), autocast=autocast)
    # Mixed: the CPU's norm kernels keep their statistics in float32, their fake ones in bfloat16.
    assert predicted == (real if autocast is None else pytest.approx(real, rel=3e-3))


# torch.tensor() and from_numpy() make tensors that no mode sees: a few numbers.
_UNSEEN = {"MakesTensors": 16, "TensorsOutOfSight": 8}


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for module in (awkward, awkward_state)
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == module.__name__ and issubclass(kind, ThreeConvolutions)
        if kind is not ThreeConvolutions
    ],
    ids=lambda kind: kind.__name__,
)
def test_the_peak_of_awkward_networks(kind: type[ThreeConvolutions]) -> None:
    network, shape = kind().double(), (2, 1, 6)
    predicted = predicted_peaks(record(network, shape=shape, dtype=torch.float64, backward=True))
    real = real_peaks(network, torch.randn(shape, dtype=torch.float64))
    assert predicted == pytest.approx(real, rel=0, abs=_UNSEEN.get(kind.__name__, 0))

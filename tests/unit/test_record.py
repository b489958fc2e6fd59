"""The dry run: what it notes of a network, and what it refuses, by name and line."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint as checkpointing
from monai.networks.nets import UNETR, SwinUNETR
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.graph import saved_tensors_hooks

from lampseg.errors import UserError
from lampseg.networks import SEUNet, UNet
from lampseg.partition import Graph, record
from lampseg.recording.graph import NewTensor, SameTensor

SHAPE = (2, 4, 6)


class Network(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 3, padding=1)
        self.register_buffer("steps", torch.zeros(()))
        self.constant = torch.ones(4, 1)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self, self.a(x)))


def graph_of(between: Any) -> Graph:
    return record(Network(between), shape=SHAPE)


def names(graph: Graph) -> list[str]:
    return [op.name for op in graph.operations]


def test_operations_are_numbered_in_call_order_with_their_modules() -> None:
    graph = graph_of(lambda _net, x: x.relu() + x.shape[-1])
    assert names(graph) == ["conv1d", "relu", "shape", "add", "conv1d"]
    assert [op.module for op in graph.operations] == ["a", "", "", "", "b"]
    assert graph.operations[0].state == ("a.weight", "a.bias")
    assert graph.operations[3].reads == ((1, 0),)
    assert graph.operations[2].plain
    assert graph.operations[2].result == torch.Size(SHAPE)
    assert graph.outputs == ((4, 0),)


def test_flops_and_bytes_of_a_convolution() -> None:
    op = graph_of(lambda _net, x: x).operations[0]
    assert op.flops == 2 * 2 * 6 * 4 * 4 * 3  # multiply and add: batch, length, channels in and out, kernel
    assert op.backward_flops == op.flops  # the input needs no gradient, the weight does
    assert op.bytes_moved == 4 * (2 * 4 * 6 + 4 * 4 * 3 + 4 + 2 * 4 * 6)


def test_what_returns_its_argument_is_no_new_value() -> None:
    graph = graph_of(lambda net, x: F.dropout(x, 0.5, False).contiguous())
    assert all(isinstance(op.outputs[0], SameTensor) for op in graph.operations[1:3])
    assert graph.operations[3].reads == ((0, 0),)
    assert not graph.pinned


def test_an_in_place_write_is_a_new_value_and_closes_the_cuts_before_it() -> None:
    graph = graph_of(lambda _net, x: F.relu(x, inplace=True))
    assert graph.operations[2].reads == ((1, 0),)
    assert graph.forbidden == {1}
    assert graph.ready_at((0, 0)) == 1


def test_views_that_are_written_stay_together() -> None:
    def between(_net: nn.Module, x: Tensor) -> Tensor:
        view = x[:, :2]
        x = x * 2 + view.sum()
        view.add_(1)
        return x

    graph = graph_of(between)
    assert names(graph) == ["conv1d", "__getitem__", "mul", "sum", "add", "add_", "conv1d"]
    assert graph.forbidden == {1, 2, 3, 4, 5}


def test_views_share_memory_and_copies_do_not() -> None:
    graph = graph_of(lambda _net, x: x.mT.contiguous().mT)
    fresh = [out.fresh for op in graph.operations for out in op.outputs if isinstance(out, NewTensor)]
    assert fresh == [True, False, True, False, True]


def test_a_tensor_that_is_written_needs_the_gradient_of_what_was_written() -> None:
    def between(_net: nn.Module, x: Tensor) -> Tensor:
        zeros = torch.zeros_like(x)
        zeros[:, 1:] = x[:, 1:]
        return zeros

    graph = graph_of(between)
    assert graph.values[1, 0].requires_grad
    assert graph.operations[1].outputs[0].value.requires_grad


def test_one_parameter_is_not_torn_apart() -> None:
    graph = graph_of(lambda net, x: net.b(x).relu())
    assert graph.forbidden == {2, 3}


def test_a_call_without_tensors_is_run_on_every_rank() -> None:
    def between(_net: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            return x * 2

    graph = graph_of(between)
    assert [op.name for op in graph.operations if op.effect] == ["_set_grad_enabled"] * 2
    assert not graph.values[2, 0].requires_grad


def test_shapes_are_in_the_signature_and_not_in_the_digest() -> None:
    one, two = (record(Network(lambda _net, x: x), shape=(2, 4, size)) for size in (6, 8))
    assert one.digest == two.digest
    assert one.signature != two.signature


def test_gradients_are_in_the_signature() -> None:
    network = Network(lambda _net, x: x)
    before = record(network, shape=SHAPE).signature
    network.a.requires_grad_(False)
    assert record(network, shape=SHAPE).signature != before


def test_nothing_is_allocated_and_nothing_changes() -> None:
    with torch.device("meta"):
        network = UNet(filters=64, norm="batch")
    graph = record(network, shape=(1, 1, 512, 512, 512))
    assert sum(storage.nbytes for storage in graph.saved) > 2**36
    assert all(parameter.is_meta for parameter in network.parameters())
    assert not any(isinstance(b, FakeTensor) for b in network.buffers())


def test_a_device_that_is_not_here() -> None:
    graphs = [
        record(Network(lambda _net, x: x + torch.zeros(6, device=x.device)), shape=SHAPE, device=device)
        for device in ("cpu", "cuda")
    ]
    assert graphs[0].digest == graphs[1].digest
    assert graphs[0].saved == graphs[1].saved


@pytest.mark.parametrize("build", [lambda: UNet(filters=4, depth=2), lambda: SEUNet(filters=4, depth=2)])
def test_saved_bytes_are_what_autograd_keeps(build: Any) -> None:
    network, shape = build(), (1, 1, 16, 16, 16)
    state = {t.untyped_storage().data_ptr() for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, tuple[int, Tensor]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in state:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # the tensor stays, so the address is not reused
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        network(torch.randn(shape))
    assert sum(storage.nbytes for storage in record(network, shape=shape).saved) == sum(n for n, _ in kept.values())


def _decides(_net: nn.Module, x: Tensor) -> Tensor:
    if x.mean() > 0:
        x = x * 2
    return x


def _hooks(_net: nn.Module, x: Tensor) -> Tensor:
    x.register_hook(lambda gradient: gradient * 2)
    return x


def _caches(net: nn.Module, x: Tensor) -> Tensor:
    if not hasattr(net, "cached"):
        net.cached = torch.ones(x.shape[-1]).cumsum(0)
    return x * net.cached


def _checkpoints(net: nn.Module, x: Tensor, *, reentrant: bool) -> Tensor:
    return checkpointing.checkpoint(torch.nn.functional.gelu, x, use_reentrant=reentrant)


def _writes_a_constant(net: nn.Module, x: Tensor) -> Tensor:
    net.constant.add_(1)
    return x * net.constant


def _writes_a_parameter(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        net.b.weight.clamp_(-1, 1)
    return x


def _sets_data(_net: nn.Module, x: Tensor) -> Tensor:
    x.data = x.data * 2
    return x


def _own_generator(_net: nn.Module, x: Tensor) -> Tensor:
    return x + torch.rand(1, generator=torch.Generator())


def _differentiates(_net: nn.Module, x: Tensor) -> Tensor:
    return x * torch.autograd.grad(x.sum(), x, create_graph=True)[0]


class _Hidden(torch.autograd.Function):
    weight: Tensor

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * _Hidden.weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def _reads_a_hidden_parameter(net: nn.Module, x: Tensor) -> Tensor:
    _Hidden.weight = net.b.weight
    return _Hidden.apply(x[..., :3])  # type: ignore[no-any-return, no-untyped-call]


def _switches_the_gradient_on(_net: nn.Module, x: Tensor) -> Tensor:
    return x * torch.ones(1).requires_grad_()


def _selects(_net: nn.Module, x: Tensor) -> Tensor:
    return x[x > 0]


def _takes_a_number(_net: nn.Module, x: Tensor) -> Tensor:
    return x * x.sum().item()


def _asks_for_its_history(_net: nn.Module, x: Tensor) -> Tensor:
    return x * (x.grad_fn is None)


def _checkpoints_its_own_function(_net: nn.Module, x: Tensor) -> Tensor:
    def inner(t: Tensor) -> Tensor:
        return t * 2

    return checkpointing.checkpoint(inner, x, use_reentrant=False)


# What is wrong, the line that does it, and what to do instead.
REFUSED: dict[str, tuple[Any, str, str]] = {
    "a decision on data": (_decides, "if x.mean() > 0:", "use `torch.where`"),
    "a mask": (_selects, "return x[x > 0]", "multiply by a mask instead"),
    "a number": (_takes_a_number, "x.sum().item()", "instead of a decision, a number"),
    "a hook": (_hooks, "x.register_hook(", "remove that call"),
    "a cache": (_caches, "return x * net.cached", "compute it anew in every pass, or register it as a buffer"),
    "checkpoint": (
        lambda net, x: _checkpoints(net, x, reentrant=False),
        "checkpointing.checkpoint(",
        "use `parallel.recompute: all` instead",
    ),
    "checkpoint, reentrant": (
        lambda net, x: _checkpoints(net, x, reentrant=True),
        "checkpointing.checkpoint(",
        "use `parallel.recompute: all` instead",
    ),
    "checkpoint of its own function": (
        _checkpoints_its_own_function,
        "checkpointing.checkpoint(inner",  # not the line inside
        "use_checkpoint: false",
    ),
    "a write to a constant": (_writes_a_constant, "net.constant.add_", "register it as a buffer"),
    "a write to a parameter": (_writes_a_parameter, "net.b.weight.clamp_", "`b.weight`: compute with a changed copy"),
    "set data": (_sets_data, "x.data = ", "remove that call"),
    "a generator": (_own_generator, "generator=torch.Generator", "remove that argument"),
    "autograd.grad": (_differentiates, "torch.autograd.grad", "`grad`.*remove that call"),
    "a hidden parameter": (_reads_a_hidden_parameter, "_Hidden.weight", "`b.weight` .*pass it as an argument"),
    "requires_grad_": (_switches_the_gradient_on, "requires_grad_", "remove that call"),
    "grad_fn": (_asks_for_its_history, "x.grad_fn is None", "remove that call"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_its_line_and_the_remedy(what: str) -> None:
    between, line, remedy = REFUSED[what]
    with pytest.raises(UserError, match="can't be split") as caught:
        graph_of(between)
    message = str(caught.value)
    named = re.search(rf"\(at {re.escape(__file__)}:\d+, `(.*)`\)", message)
    assert named is not None, message
    assert line in named[1]
    assert re.search(remedy, message), message


def test_checkpointing_in_the_transformers_of_monai() -> None:
    """The line is that which calls `checkpoint`, not one inside the function that is checkpointed."""
    network = SwinUNETR(1, 2, depths=(1, 1, 1, 1), num_heads=(3, 3, 3, 3), feature_size=12, use_checkpoint=True)
    with pytest.raises(UserError, match=r"swin_unetr.py:\d+, `x = checkpoint.checkpoint\(self.forward_part1") as caught:
        record(network, shape=(1, 1, 32, 32, 64))
    assert "use_checkpoint: false" in str(caught.value)


def test_a_size_that_does_not_fit_is_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    network = UNETR(1, 2, 16, feature_size=2, hidden_size=12, mlp_dim=16, num_heads=3)
    with pytest.raises(UserError, match=r"recorded for .*\(1, 1, 32, 16, 16\): .*unetr.py:.*another shape"):
        record(network, shape=(1, 1, 32, 16, 16))
    assert capfd.readouterr() == ("", "")


def test_compiled_modules_are_refused() -> None:
    convolution = nn.Conv1d(4, 4, 1)
    for compiled, words in (
        (torch.jit.script(convolution), "`a` is TorchScript.*use the Python module"),
        (torch.compile(convolution), "`a` is compiled by `torch.compile`.*remove that call"),
    ):
        network = Network(lambda _net, x: x)
        network.a = compiled
        with pytest.raises(UserError, match=words):
            record(network, shape=SHAPE)


def test_script_is_refused() -> None:
    scripted = torch.jit.trace(torch.tanh, torch.ones(1))
    with pytest.raises(UserError, match="TorchScript"):
        graph_of(lambda _net, x: scripted(x))


def test_an_output_that_is_no_tensor_is_refused() -> None:
    class Empty(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Any]:
            return {"out": x + 1, "count": 3}

    with pytest.raises(UserError, match="must return tensors"):
        record(Empty(), shape=SHAPE)


def test_the_networks_own_complaint_passes() -> None:
    with pytest.raises(UserError, match="multiple of the network's stride"):
        record(UNet(filters=4), shape=(1, 1, 30, 32, 32))


def test_a_refusal_leaves_torch_as_it_was() -> None:
    apply = torch.autograd.Function.apply
    network = Network(_decides)
    with pytest.raises(UserError):
        record(network, shape=SHAPE)
    assert torch.autograd.Function.apply == apply
    assert not network.a._forward_hooks
    assert not network.a._forward_pre_hooks
    assert torch.is_grad_enabled()

"""Units: which operations make one, every kind of convolution, norm and activation in them, and what runs plainly."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lampseg.errors import GraphMismatchError
from lampseg.parallel.tiled import TiledPasses, mode
from lampseg.parallel.tiled.planes import Reach, thickness_of, tiles
from lampseg.parallel.tiled.units import Unit, units_of
from lampseg.recording.live import LiveBytes

SHAPE = (2, 3, 11, 6, 5)


def passes_of(network: nn.Module, tile: int = 2) -> TiledPasses:
    return TiledPasses(network, tile=tile, device=torch.device("cpu"), precision="float64")


def results(network: nn.Module, forward: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> dict[str, Any]:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    output = forward(x)
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (output * weights).sum().backward()
    return {
        "output": output.detach(),
        "input": x.grad,
        "gradients": {name: p.grad for name, p in network.named_parameters()},
        "buffers": dict(network.named_buffers()),
    }


def check(network: nn.Module, *, shape: tuple[int, ...] = SHAPE, units: int = 1, plainly: int = 0) -> tuple[Unit, ...]:
    """Tiles equal the whole, in train and in eval mode.

    Args:
        units: so many are found, besides convolutions alone.
        plainly: so many of them run operation by operation.
    """
    torch.manual_seed(5)
    network = network.double()
    for p in network.parameters():
        nn.init.normal_(p, std=0.5)
    found: tuple[Unit, ...] = ()
    for training in (True, False):
        network.train(training)
        tiled, whole = copy.deepcopy(network), copy.deepcopy(network)
        passes = passes_of(tiled)
        found = tuple(unit for unit in units_of(passes.graph(shape)) if len(unit.chain) > 1)
        assert len(found) == units
        with Plainly() as counted:
            actual = results(tiled, passes.forward, shape)
        assert counted.units == plainly
        torch.testing.assert_close(actual, results(whole, whole, shape), rtol=1e-10, atol=1e-10)
    return found


class Plainly:
    """Counts the units that run operation by operation."""

    def __enter__(self) -> "Plainly":
        self.units, self._real = 0, mode.call_of

        def counted(*args: Any, **kwargs: Any) -> Any:
            found = self._real(*args, **kwargs)
            self.units += found is None and len(args[1]) > 1
            return found

        mode.call_of = counted  # type: ignore[assignment]
        return self

    def __exit__(self, *error: object) -> None:
        mode.call_of = self._real


class Function(nn.Module):
    """A function of the input and a module's children."""

    def __init__(self, function: Callable[..., Tensor], **children: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


CONVOLUTIONS = {
    "plain": nn.Conv3d(3, 4, 3, padding=1),
    "no-padding": nn.Conv3d(3, 4, 3, bias=False),
    "strided": nn.Conv3d(3, 4, 3, stride=2, padding=1),
    "far-apart": nn.Conv3d(3, 4, 1, stride=3),
    "dilated": nn.Conv3d(3, 4, (3, 3, 1), padding=(2, 1, 0), dilation=(2, 1, 1)),
    "grouped": nn.Conv3d(3, 6, (5, 1, 3), padding=(2, 0, 1), groups=3),
    "even": nn.Conv3d(3, 4, 2, padding=1),
    "same": nn.Conv3d(3, 4, (3, 5, 1), padding="same"),
    "valid": nn.Conv3d(3, 4, 3, padding="valid"),
    "kernel-as-large": nn.Conv3d(3, 4, (11, 1, 1), padding=(5, 0, 0)),
    "reflecting": nn.Conv3d(3, 4, 3, padding=1, padding_mode="reflect"),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str) -> None:
    convolution = copy.deepcopy(CONVOLUTIONS[name])
    check(nn.Sequential(convolution, nn.InstanceNorm3d(convolution.out_channels, affine=True), nn.SiLU()))


@pytest.mark.parametrize("convolution", [nn.Conv3d(3, 4, (2, 3, 3), padding="same"), nn.Conv3d(3, 4, 1, padding=1)])
def test_paddings_that_run_plainly(convolution: nn.Module) -> None:
    """An even kernel with one plane more on one side, and outputs that see nothing but padding."""
    check(nn.Sequential(convolution, nn.InstanceNorm3d(4)), plainly=1)


@pytest.mark.parametrize("dims", [1, 2])
def test_other_dimensions(dims: int) -> None:
    kinds = {1: (nn.Conv1d, nn.BatchNorm1d), 2: (nn.Conv2d, nn.BatchNorm2d)}
    convolution, norm = kinds[dims]
    check(nn.Sequential(convolution(3, 4, 3, padding=1), norm(4), nn.ReLU()), shape=SHAPE[: 2 + dims])


NORMS = {
    "batch": nn.BatchNorm3d(6, momentum=0.3),
    "batch-no-affine": nn.BatchNorm3d(6, affine=False),
    "batch-no-statistics": nn.BatchNorm3d(6, track_running_stats=False),
    "instance": nn.InstanceNorm3d(6),
    "instance-statistics": nn.InstanceNorm3d(6, affine=True, track_running_stats=True, momentum=0.3),
    "group": nn.GroupNorm(3, 6),
    "group-no-affine": nn.GroupNorm(2, 6, affine=False),
}


@pytest.mark.parametrize("name", NORMS)
def test_norms_after_and_before(name: str) -> None:
    """A norm after a convolution, one between two, and one before a convolution that follows none."""
    norm = NORMS[name]
    check(nn.Sequential(nn.Conv3d(3, 6, 3, padding=1), copy.deepcopy(norm), nn.LeakyReLU(0.2)))
    units = check(
        nn.Sequential(
            nn.Conv3d(3, 6, 3, padding=1), copy.deepcopy(norm), nn.LeakyReLU(0.2, inplace=True), nn.Conv3d(6, 2, 3)
        )
    )
    assert units[0].norm_before is not None
    assert units[0].norm_after is None
    check(nn.Sequential(copy.deepcopy(norm), nn.PReLU(), nn.Conv3d(6, 2, 3, padding=1)), shape=(2, 6, 11, 6, 5))


ACTIVATIONS = [
    nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(0.3), nn.LeakyReLU(inplace=True), nn.PReLU(), nn.PReLU(4),
    nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.ELU(0.7), nn.ELU(inplace=True), nn.SELU(), nn.CELU(0.5),
    nn.Mish(), nn.Hardswish(), nn.Hardtanh(-0.5, 0.7), nn.ReLU6(), nn.Softplus(2.0, 5.0), nn.Sigmoid(), nn.Tanh(),
]  # fmt: skip


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=str)
def test_activations(activation: nn.Module) -> None:
    activation = copy.deepcopy(activation)
    check(nn.Sequential(nn.Conv3d(3, 4, 3, padding=1), nn.InstanceNorm3d(4, affine=True), activation))
    check(
        nn.Sequential(
            nn.Conv3d(3, 4, 3), nn.InstanceNorm3d(4, affine=True), copy.deepcopy(activation), nn.Conv3d(4, 2, 3)
        )
    )


def test_an_activation_without_a_norm() -> None:
    """It is taken where its input would be kept, and left where its result is."""
    check(nn.Sequential(nn.Conv3d(3, 4, 3), nn.SiLU()))
    check(nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU()), units=0)


def test_concatenation_is_part_of_the_unit() -> None:
    network = Function(lambda self, x: self.conv(torch.cat([x, x.sin(), x], dim=1)), conv=nn.Conv3d(9, 4, 3, padding=1))
    (unit,) = check(network)
    assert unit.cat is not None
    normed = Function(
        lambda self, x: self.conv(F.silu(self.norm(torch.cat((x.cos(), x), dim=-4)))),
        norm=nn.GroupNorm(2, 6),
        conv=nn.Conv3d(6, 2, 3),
    )
    (unit,) = check(normed)
    assert unit.cat is not None
    assert unit.norm_before is not None


def test_concatenation_along_another_dimension() -> None:
    network = Function(
        lambda self, x: self.norm(self.conv(torch.cat([x, x], dim=2))),
        conv=nn.Conv3d(3, 4, 3),
        norm=nn.InstanceNorm3d(4),
    )
    (unit,) = check(network)
    assert unit.cat is None


@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_is_part_of_the_next(bias: bool) -> None:
    """Its zeros around the volume are those of its result: with a bias these differ."""
    network = Function(
        lambda self, x: self.norm(self.conv(self.mix(torch.cat([x, x.sin()], 1)))),
        mix=nn.Conv3d(6, 8, 1, bias=bias),
        conv=nn.Conv3d(8, 4, 3, padding=1, stride=2),
        norm=nn.InstanceNorm3d(4, affine=True),
    )
    (unit,) = check(network)
    assert unit.cat is not None
    assert unit.pointwise is not None
    frozen = Function(network.function, mix=network.mix, conv=network.conv, norm=network.norm)
    frozen.conv.requires_grad_(False)
    check(frozen)


def test_not_every_convolution_of_kernel_1_is() -> None:
    strided = nn.Sequential(nn.Conv3d(3, 4, 1, stride=2), nn.Conv3d(4, 4, 3, padding=1), nn.InstanceNorm3d(4))
    (unit,) = check(strided)
    assert unit.pointwise is None
    padded = nn.Sequential(nn.Conv3d(3, 4, 1, padding=1), nn.Conv3d(4, 4, 3, padding=1), nn.InstanceNorm3d(4))
    (unit,) = check(padded)
    assert unit.pointwise is None


def test_both_a_norm_before_and_after() -> None:
    """The first convolution's result is normed by the second's unit; what follows is read twice."""
    network = Function(
        lambda self, x: (lambda y: y + y.sin())(self.rest(x)),
        rest=nn.Sequential(
            nn.Conv3d(3, 4, 3, padding=1), nn.BatchNorm3d(4), nn.PReLU(4),
            nn.Conv3d(4, 5, 3, padding=1, stride=2), nn.InstanceNorm3d(5, affine=True), nn.PReLU(),
        ),
    )  # fmt: skip
    (unit,) = check(network)
    assert unit.norm_before is not None
    assert unit.norm_after is not None


def test_what_several_read_is_kept() -> None:
    """The norm's result goes on twice: the activation is not part of the unit."""
    network = Function(
        lambda self, x: (lambda y: F.relu(y) + y)(self.norm(self.conv(x))),
        conv=nn.Conv3d(3, 4, 3),
        norm=nn.InstanceNorm3d(4),
    )
    (unit,) = check(network)
    assert unit.norm_after is not None
    assert unit.activation_after is None
    both = Function(
        lambda self, x: (lambda y: self.norm(y) + y)(self.conv(x)), conv=nn.Conv3d(3, 4, 3), norm=nn.InstanceNorm3d(4)
    )
    check(both, units=0)


def test_shared_modules() -> None:
    """One convolution and one norm, three times; batch norm's statistics are updated as often."""
    network = Function(
        lambda self, x: self.block(self.block(self.block(x))).sin(),
        block=nn.Sequential(nn.Conv3d(3, 3, 3, padding=1), nn.BatchNorm3d(3), nn.LeakyReLU()),
    )
    check(network, units=2)  # besides the first convolution


def test_a_write_to_an_input_between() -> None:
    """The concatenation comes before the write, the convolution after it: they can't run together."""

    def function(self: Any, x: Tensor) -> Tensor:
        y = x.sin()
        both = torch.cat([y, x], 1)
        y.view(-1).mul_(2)
        return self.norm(self.conv(both)) * y.sum()  # type: ignore[no-any-return]

    (unit,) = check(Function(function, conv=nn.Conv3d(6, 4, 3), norm=nn.InstanceNorm3d(4)))
    assert unit.cat is None


def test_a_write_to_an_input_afterwards() -> None:
    """A concatenation keeps no input. The unit did, and its backward failed: modified by an inplace operation."""

    def function(self: Any, x: Tensor) -> Tensor:
        y = x * 2
        out = self.norm(self.conv(torch.cat([y, x], 1)))
        return out * y.add_(1).sum()  # type: ignore[no-any-return]

    (unit,) = check(Function(function, conv=nn.Conv3d(6, 4, 3), norm=nn.InstanceNorm3d(4)))
    assert unit.cat is None


def test_results_of_writes_are_found() -> None:
    """The network goes on with the argument of an in-place activation, not with what it returned."""

    def function(self: Any, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        F.leaky_relu_(y, 0.2)
        return (y + 1).add_(y)  # type: ignore[no-any-return]

    (unit,) = check(Function(function, conv=nn.Conv3d(3, 4, 3), norm=nn.InstanceNorm3d(4)))
    assert unit.activation_after is not None


def test_dropout_that_drops_nothing_is_passed() -> None:
    network = nn.Sequential(nn.Conv3d(3, 4, 3), nn.InstanceNorm3d(4), nn.Dropout(0.0), nn.ReLU())
    (unit,) = check(network)
    assert unit.activation_after is not None


def test_dropout_is_that_of_the_pipeline() -> None:
    """Seeded by the operation: the same numbers with tiles of any thickness, others with another seed."""
    network = nn.Sequential(nn.Conv3d(3, 4, 3), nn.InstanceNorm3d(4), nn.Dropout(0.5), nn.Conv3d(4, 2, 3)).double()
    x = torch.randn(SHAPE, dtype=torch.float64)
    first, second = (passes_of(network, tile).forward(x, seed=3) for tile in (2, 5))
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
    assert not torch.allclose(first, passes_of(network).forward(x, seed=4))


def test_frozen_parameters_and_inputs_without_gradients() -> None:
    network = nn.Sequential(nn.Conv3d(3, 4, 3), nn.InstanceNorm3d(4, affine=True), nn.PReLU(), nn.Conv3d(4, 2, 3))
    network = network.double()
    for frozen in ("0.weight", "1.bias", "3.weight"):
        plain, tiled = copy.deepcopy(network), copy.deepcopy(network)
        for each in (plain, tiled):
            each.get_parameter(frozen).requires_grad_(False)
        x = torch.randn(SHAPE, dtype=torch.float64)
        plain(x).square().sum().backward()
        passes_of(tiled).forward(x).square().sum().backward()
        for a, b in zip(tiled.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)


def test_another_forward_is_noticed() -> None:
    network = Function(lambda self, x: self.conv(x) * 2, conv=nn.Conv3d(3, 4, 3)).double()
    passes = passes_of(network)
    passes.graph(SHAPE)
    network.function = lambda self, x: self.conv(x)
    with pytest.raises(GraphMismatchError, match="made 1 calls, 2 were recorded"):
        passes.forward(torch.zeros(SHAPE, dtype=torch.float64))
    network.function = lambda self, x: self.conv(x).sin()
    with pytest.raises(GraphMismatchError, match="call 1 of the network is `sin`, recorded was `mul`"):
        passes.forward(torch.zeros(SHAPE, dtype=torch.float64))


def inferred(network: nn.Module, shape: tuple[int, ...] = SHAPE, tile: int = 2) -> tuple[Tensor, int]:
    """The output without gradients, which equals the plain one; and the most bytes that were alive beside the input."""
    x = torch.randn(shape, dtype=torch.float64)
    passes, given = passes_of(network, tile), x.clone()
    with torch.no_grad():
        passes.graph(shape)
        with LiveBytes() as live:
            output = passes.forward(given)
        torch.testing.assert_close(output, network(x), rtol=1e-10, atol=1e-10)
    assert torch.equal(given, x)
    return output, live.peak


@pytest.mark.parametrize("padding", [0, 1, 5])
@pytest.mark.parametrize("norm", [nn.InstanceNorm3d(3, affine=True), nn.BatchNorm3d(3)])
def test_without_gradients_dead_memory_is_used_again(norm: nn.Module, padding: int) -> None:
    """Without padding the sizes differ, so that it can't be; with more of it than a tile has planes it can."""
    kernel = max(2 * padding + 1, 3)
    for training in (True, False):
        block = nn.Sequential(nn.Conv3d(3, 3, (kernel, 1, 1), padding=(padding, 0, 0)), copy.deepcopy(norm), nn.GELU())
        network = nn.Sequential(*block, *copy.deepcopy(block)).double().train(training)
        shape = (2, 3, 160, 4, 3)
        whole = 8 * torch.Size(shape).numel()
        _, peak = inferred(network, shape)
        if padding == 0:
            assert peak > 1.8 * whole
        else:
            assert peak < 1.8 * whole, "one result and some tiles"


def test_memory_that_is_read_again_is_kept() -> None:
    conv, norm = nn.Conv3d(3, 3, 3, padding=1), nn.InstanceNorm3d(3)
    functions: list[Callable[[Any, Tensor], Any]] = [
        lambda self, x: (lambda y: self.norm(self.conv(y)) + y)(self.conv(x)),
        lambda self, x: (lambda y: self.norm(self.conv(y)) + y[:, :1])(self.conv(x)),
        lambda self, x: (lambda y, z: self.norm(self.conv(y)) + z)(*(lambda y: (y, y.view(-1)[0]))(self.conv(x))),
        lambda self, x: self.norm(self.conv(x.mul_(1.0))),
        lambda self, x: (lambda y: torch.stack([self.norm(self.conv(y)), y]))(self.conv(x)),
        lambda self, x: (lambda y: (self.norm(self.conv(y)), y))(self.conv(x)),
    ]
    for function in functions:
        inferred(Function(function, conv=conv, norm=norm).double())
    joined = Function(
        lambda self, x: (lambda y: self.norm(self.mix(torch.cat([y, y.view(y.shape), x], 1))))(self.conv(x)),
        conv=conv,
        mix=nn.Conv3d(9, 3, 3, padding=1),
        norm=norm,
    )
    inferred(joined.double())


def test_a_hook_sees_what_a_module_made() -> None:
    """What it keeps is not overwritten."""
    network = nn.Sequential(
        nn.Conv3d(3, 3, 3, padding=1), nn.InstanceNorm3d(3), nn.Sigmoid(), nn.Conv3d(3, 3, 3, padding=1), nn.ReLU()
    ).double()
    seen: list[Tensor] = []
    network[0].register_forward_hook(lambda module, args, output: seen.append(output))
    x = torch.randn(SHAPE, dtype=torch.float64)
    with torch.no_grad():
        passes_of(network).forward(x)
        torch.testing.assert_close(seen[-1], network[0](x), rtol=1e-12, atol=1e-12)


def test_planes_by_hand() -> None:
    reach = Reach(kernel=3, stride=2, padding=1, dilation=2)
    assert reach.outputs(11) == 5
    assert reach.inputs(0, 2, 11) == (0, 6, 1, 0)
    assert reach.inputs(4, 5, 11) == (7, 11, 0, 1)
    assert list(tiles(7, 3)) == [(0, 3), (3, 6), (6, 7)]
    assert thickness_of(4, whole=(64, 32, 16), size=(64, 32, 16)) == 4
    assert thickness_of(4, whole=(64, 32, 16), size=(32, 16, 8)) == 16
    assert thickness_of(1, whole=(8, 4), size=(16, 8)) == 1

"""The forecast for tiles: what real steps hold, less than without tiles; and when it is taken."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lampseg.config import Config, LossConfig
from lampseg.errors import UserError
from lampseg.hardware.device import hardware_for
from lampseg.networks import UNet
from lampseg.parallel.devices import parse_devices
from lampseg.parallel.mesh import Mesh
from lampseg.parallel.rehearsal import rehearse
from lampseg.parallel.tiled import TiledPasses
from lampseg.parallel.tiled.forecast import thicknesses, tile_choices, tile_plan
from lampseg.parallel.tiled.runner import TileRunner
from lampseg.parallel.world import World
from lampseg.partition.costed import CostedNetwork, cost_network
from lampseg.partition.forecast import plan_of
from lampseg.partition.plan import Choices, Plan, plans_from_json, plans_to_json
from lampseg.partition.planner import cut_for
from lampseg.recording.live import LiveBytes
from lampseg.training.loss import HybridLoss, mini_batch_loss
from lampseg.training.planned_loss import planned_loss
from lampseg.training.plans import make_plans, plans_given
from lampseg.training.subject import Subject
from lampseg.training.supervision import supervised_loss
from tests.equivalence.any_network import CLASSES, build

LOSS = LossConfig()
NETWORKS: dict[str, tuple[tuple[int, ...], float]] = {
    "ours": ((1, 1, 32, 32, 32), 0.80),
    "basicunet": ((1, 1, 32, 32, 32), 0.70),
    "dynunet": ((1, 1, 32, 32, 32), 0.60),
    "segresnet": ((1, 1, 32, 32, 32), 0.65),
    "residualencoderunet": ((1, 1, 32, 32, 32), 0.60),
}
"""The input, and how much of what is kept without tiles is kept at most."""


def network_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "ours":
        return UNet(out_channels=CLASSES, filters=8, depth=2, norm="instance", stem_stride=1)
    return build(name).float()


def costed(name: str, precision: str = "float32") -> CostedNetwork:
    loss = planned_loss(LOSS, classes=CLASSES)
    return cost_network(network_of(name), shape=NETWORKS[name][0], precision=precision, loss=loss, name=name)


def planned(name: str, *, tile: int = 4, micro_batches: int = 1, precision: str = "float32") -> Plan:
    choices = tile_choices(tile, micro_batches=micro_batches)
    return tile_plan(costed(name, precision), choices, loss=planned_loss(LOSS, classes=CLASSES))


def whole_plan(name: str) -> Plan:
    model = costed(name)
    choices = cut_for(model, devices=1, stages=1, schedule="1f1b", micro_batches=1, recompute=("none",))
    assert choices is not None
    return plan_of(model, choices)


def measured(name: str, plan: Plan) -> int:
    """The most bytes of tensors that are alive at once in a real second step."""
    network, shape = network_of(name), plan.input_shape
    world = World(0, 1, torch.device("cpu"), channels=None, control=None)  # type: ignore[arg-type]
    runner = TileRunner(network, mesh=Mesh(world, 1, 1), choices=plan.choices, precision=plan.precision)
    hybrid = HybridLoss((1.0,) * CLASSES, LOSS.focal, LOSS.gamma)
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-5)

    def loss(m: int, output: Any) -> Tensor:
        target = torch.full((shape[0], *shape[2:]), m % CLASSES)
        annotated = torch.ones((shape[0], CLASSES), dtype=torch.bool)
        return mini_batch_loss(supervised_loss(hybrid, output, target, annotated, None), batch=plan.micro_batches)

    def step() -> None:
        runner.step([shape] * plan.micro_batches, load=lambda m: torch.full(shape, 0.1 * m), loss=loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    live = LiveBytes()
    for tensor in (*network.parameters(), *network.buffers()):
        live.add(tensor)
    for numbers in optimizer.state.values():
        for value in numbers.values():
            if isinstance(value, Tensor):
                live.add(value)
    with live, torch.autograd.set_multithreading_enabled(False):
        step()
    return live.peak


@pytest.mark.parametrize("name", NETWORKS)
def test_the_prediction_is_what_a_step_holds(name: str) -> None:
    plan = planned(name)
    assert plan.devices[0].tensor_bytes == pytest.approx(measured(name, plan), rel=0.01)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_kept_is_counted(name: str) -> None:
    """The bytes alive between forward and backward, of a real run."""
    plan, network = planned(name), network_of(name)
    passes = TiledPasses(network, tile=plan.choices.tile, device=torch.device("cpu"), precision="float32")
    passes.graph(plan.input_shape)
    live = LiveBytes()
    x = [torch.zeros(plan.input_shape)]
    live.add(x[0])
    hybrid = HybridLoss((1.0,) * CLASSES, LOSS.focal, LOSS.gamma)
    with live:
        output = passes.forward(x.pop())
        target = torch.zeros((1, *plan.input_shape[2:]), dtype=torch.int64)
        annotated = torch.ones((1, CLASSES), dtype=torch.bool)
        loss = mini_batch_loss(supervised_loss(hybrid, output, target, annotated, None), batch=1)
        del output, target, annotated
        kept = live.current
    loss.backward()
    assert kept == pytest.approx(plan.stages[0].activation_bytes, rel=0.01)


def test_the_prediction_of_several_micro_batches_and_of_mixed_precision() -> None:
    for micro_batches, precision in ((3, "float32"), (1, "bfloat16")):
        plan = planned("ours", tile=5, micro_batches=micro_batches, precision=precision)
        assert plan.devices[0].tensor_bytes == pytest.approx(measured("ours", plan), rel=0.02)


@pytest.mark.parametrize("name", NETWORKS)
def test_less_is_kept(name: str) -> None:
    model, plan, whole = costed(name), planned(name), whole_plan(name)
    kept = plan.stages[0].activation_bytes / whole.stages[0].activation_bytes
    assert kept <= NETWORKS[name][1]
    loss = planned_loss(LOSS, classes=CLASSES)
    assert plan.devices[0].tensor_bytes < rehearse(model, whole, loss)[0].tensor_bytes


class Two(nn.Module):
    """Two convolutions with a norm and an activation between them, and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv3d(1, 4, 3, padding=1), nn.InstanceNorm3d(4)
        self.second, self.last = nn.Conv3d(4, 2, 3, padding=1), nn.InstanceNorm3d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(torch.relu(self.norm(self.first(x)))))  # type: ignore[no-any-return]


def test_kept_bytes_by_hand() -> None:
    """The input, the first convolution's result, four numbers for each channel, and the loss that stands in."""
    plan = tile_plan(cost_network(Two(), shape=(1, 1, 12, 8, 8)), tile_choices(3, micro_batches=1))
    statistics = 3 * (4 + 2)  # mean, deviation and number
    assert plan.stages[0].activation_bytes == 4 * ((1 + 4) * 12 * 8 * 8 + statistics + 1)


def test_thin_tiles_need_less_beside() -> None:
    model = cost_network(Two(), shape=(1, 1, 64, 8, 8))
    extra = [tile_plan(model, tile_choices(n, micro_batches=1)).stages[0].extra_bytes for n in (64, 16, 4)]
    assert extra[0] > extra[1] > extra[2]


def test_recomputed_flops_are_counted() -> None:
    """The second convolution runs three times in all: its norm is in its unit; the first one runs once."""
    model = cost_network(Two(), shape=(1, 1, 12, 8, 8))
    first, second = 2 * 27 * 12 * 8 * 8 * 4, 2 * 27 * 12 * 8 * 8 * 8
    plain = 3 * (first + second) - first  # the input has no gradient
    assert plan_of(model, whole_choices()).stages[0].flops == pytest.approx(plain)
    tiled = tile_plan(model, tile_choices(12, micro_batches=1)).stages[0].flops
    assert tiled == pytest.approx(plain + 2 * second)


def whole_choices() -> Choices:
    return Choices(devices=1, replicas=1, micro_batches=1, schedule="1f1b", cuts=(), recompute=("none",))


def test_thicknesses() -> None:
    assert list(thicknesses(96)) == [24, 12, 6, 3, 2]
    assert list(thicknesses(9)) == [3, 2]
    assert list(thicknesses(1)) == [1]


def subject(parallel: dict[str, Any], size: int = 32) -> Subject:
    config = Config.model_validate(
        {
            "data": {"root": "unused"},
            "curriculum": [{"patch": size, "batch": 2, "steps": 1}],
            "parallel": parallel,
        }
    )
    devices = parse_devices(config.parallel.devices, planning=True)
    hardware = hardware_for(kind="cpu", name="cpu", processes=devices.count)
    network = UNet(out_channels=CLASSES, filters=8, depth=2, norm="instance", stem_stride=1)
    return Subject(config, network, CLASSES, network.stride, (size,) * 3, devices, hardware)  # type: ignore[arg-type]


def test_taken_where_nothing_else_fits() -> None:
    (plain,) = make_plans(subject({"devices": "1x1GiB"}))
    assert plain.choices.tile == 0
    (other,) = [a for a in plain.alternatives if "tiles of 8 planes" in a.label]
    assert other.step_seconds is not None
    assert other.peak_bytes is not None
    assert other.peak_bytes < plain.peak_bytes
    assert "in time" in other.verdict
    assert "parallel.mode: tiled" in other.verdict
    between = int((other.peak_bytes + plain.peak_bytes) / 2)
    # One stage: two on one device could recompute one after the other.
    (tiled,) = make_plans(subject({"devices": f"1x{between}B", "schedule": "1f1b"}))
    assert tiled.choices.tile > 0
    assert tiled.peak_bytes <= between
    assert tiled.alternatives[0].verdict == "does not fit"
    with pytest.raises(UserError, match="does not fit: at best the devices need"):
        make_plans(subject({"devices": f"1x{between}B", "recompute": "none", "schedule": "1f1b"}))


def test_asked_for() -> None:
    (plan,) = make_plans(subject({"devices": 1, "mode": "tiled"}))
    assert plan.choices.tile in thicknesses(32)
    (chosen,) = make_plans(subject({"devices": 1, "mode": "tiled", "tile": 5}))
    assert chosen.choices.tile == 5
    assert "1 device, tiles of 5 planes, 2 micro-batches" in chosen.headline()
    with pytest.raises(UserError, match="tiled is for one device, there are 2: use mode spatial"):
        make_plans(subject({"devices": 2, "mode": "tiled"}))


def test_written_and_read_and_given() -> None:
    asked = subject({"devices": 1, "mode": "tiled", "tile": 5})
    plans = plans_from_json(plans_to_json(make_plans(asked)))
    assert plans[0].choices.tile == 5
    (again,) = plans_given(asked, plans, source="here")
    assert again.devices[0].peak_bytes == plans[0].devices[0].peak_bytes


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [("tile", -1, "choices.tile is -1"), ("slabs", (2, 1, 1), "tiles are for one device"), ("tile", "4", "'4'")],
)
def test_contradicting_choices(field: str, value: Any, message: str) -> None:
    from dataclasses import replace

    with pytest.raises(UserError, match=message):
        replace(tile_choices(4, micro_batches=1), **{field: value}).check()


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"mode": "spatial", "tile": 4}, "tile 4 is for mode tiled, the mode is spatial"),
        ({"mode": "tiled", "replicas": 2}, "mode tiled is for one device, replicas is 2"),
        ({"mode": "tiled", "recompute": "all"}, "mode tiled recomputes within its tiles"),
    ],
)
def test_contradicting_configurations(parallel: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        subject(parallel)

"""The forecast for slabs: grids, bytes and messages against counts by hand, and what can't be cut."""

import itertools
from itertools import chain, pairwise

import pytest
import torch
from torch import Tensor, nn

from lampseg.config import Config
from lampseg.errors import UserError
from lampseg.hardware.device import hardware_for
from lampseg.networks import UNet
from lampseg.parallel.devices import parse_devices
from lampseg.parallel.fake_state import fake_state
from lampseg.parallel.spatial import NotExactError, SpatialParallel, check_slabs
from lampseg.parallel.spatial.forecast import hold_anew, slab_cost, slab_plan
from lampseg.parallel.spatial.grids import choices_for, grids, slab_plans
from lampseg.parallel.spatial.layout import spread_edges
from lampseg.parallel.spatial.mixed import on_slabs
from lampseg.parallel.spatial.window import Spread, Window
from lampseg.partition.costed import CostedNetwork, cost_network, record_for
from lampseg.partition.plan import Plan
from lampseg.partition.problem import Problem
from lampseg.training.plans import make_plans, plans_given
from lampseg.training.subject import Subject
from tests.equivalence.any_network import build


class Two(nn.Module):
    """Two convolutions; the second keeps what the first made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


def costed(network: nn.Module, size: tuple[int, ...]) -> CostedNetwork:
    return cost_network(network, shape=(1, 1, *size))


def plan_for(network: nn.Module, size: tuple[int, ...], grid: tuple[int, ...], stride: int = 1) -> Plan:
    model = costed(network, size)
    return slab_plan(model, choices_for(model, grid, micro_batches=1, replicas=1), stride=(stride,) * 3)


def test_halos_counted_by_hand() -> None:
    """A plane of 8 x 8 voxels goes each way for each convolution, and its gradient comes home; the input has none."""
    plan = plan_for(Two(), (12, 8, 8), (3, 1, 1))
    plane = 8 * 8 * 4
    forward = 2 * (1 + 4) * plane  # an inner rank has two neighbours
    backward = 2 * 4 * plane
    assert plan.stages[0].send_bytes == forward + backward
    inner, outer = plan.devices[1], plan.devices[0]
    assert inner.activation_bytes > outer.activation_bytes, "it keeps two halos"
    # Kept: the slab of the input and of the first result, with halos of one plane at each side.
    number = 4  # the loss that stands in
    assert inner.activation_bytes == (4 + 2) * (1 + 4) * plane + number
    assert outer.activation_bytes == (4 + 1) * (1 + 4) * plane + number


def test_slabs_divide_the_activations() -> None:
    network = UNet(out_channels=3, filters=8, depth=2, norm="instance", stem_stride=1)
    single = plan_for(network, (64, 64, 64), (1, 1, 1), 4).stages[0].activation_bytes
    for grid, most in (((2, 1, 1), 1.05), ((4, 1, 1), 1.10), ((2, 2, 1), 1.10)):
        plan = plan_for(network, (64, 64, 64), grid, 4)
        assert len(plan.devices) == plan.choices.sharing
        assert plan.stages[0].activation_bytes * plan.choices.sharing <= most * single


def test_grids_have_small_surfaces() -> None:
    assert grids(2, size=(64, 32, 32), stride=(4, 4, 4))[0] == (2, 1, 1)
    assert grids(4, size=(64, 64, 64), stride=(4, 4, 4))[0] == (2, 2, 1)
    assert grids(4, size=(352, 64, 64), stride=(4, 4, 4))[0] == (4, 1, 1)
    assert grids(8, size=(16, 16, 16), stride=(8, 8, 8)) == [(2, 2, 2)]
    assert grids(16, size=(16, 16, 16), stride=(8, 8, 8)) == []


def test_edges() -> None:
    assert spread_edges(22 * 16, 4, unit=16) == (0, 96, 192, 272, 352)
    assert spread_edges(13, 3) == (0, 5, 9, 13)
    assert spread_edges(3, 2, unit=8) == (0, 2, 3)


def test_windows_cover_every_output_once() -> None:
    """Whatever the edges; and each output finds its inputs among those that its rank needs."""
    edges = (0, 3, 7, 8, 13)
    for kernel in range(1, 6):
        for stride in (1, 2, 3):
            for padding in range(kernel):
                window = Window(kernel, stride, padding)
                out = window.edges(edges)
                assert (out[0], out[-1]) == (0, window.planes(13))
                assert list(out) == sorted(out)
                spread = Spread(kernel, stride, padding)
                if spread.planes(13) > 0:
                    out = spread.edges(edges)
                    assert (out[0], out[-1]) == (0, spread.planes(13))
                    assert list(out) == sorted(out)
                    for begin, end in itertools.pairwise(out):
                        if begin < end:
                            low, high = spread.need((begin, end), 13)
                            reads = [
                                i for i in range(13) for k in range(kernel) if begin <= i * stride - padding + k < end
                            ]
                            assert not reads or (low <= min(reads) and max(reads) < high)


def test_attention_is_refused_by_name() -> None:
    model = cost_network(build("swinunetr"), shape=(1, 1, 64, 32, 32), precision="float64")
    with pytest.raises(NotExactError, match=r"`\w+` \(at .*\.py:\d+\) is not known to be exact on slabs"):
        next(slab_plans(model, ranks=2, replicas=1, micro_batches=1, stride=(32, 32, 32)))


def test_what_can_not_be_cut() -> None:
    model = costed(Two(), (8, 8, 8))
    with pytest.raises(UserError, match="can't be cut into 5 slabs: each needs at least"):
        next(slab_plans(model, ranks=5, replicas=1, micro_batches=1, stride=(4, 4, 4)))
    with pytest.raises(UserError, match="2 replicas can't share 1 micro-batch"):
        choices_for(model, (2, 1, 1), micro_batches=1, replicas=2)


class Wrong(nn.Module):
    """Exact in each of its functions, but not in its use of sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.scaled = nn.Conv3d(1, 2, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled(x) / x.shape[2]


def test_the_self_check_finds_what_no_rule_can() -> None:
    """A rank's slab has half as many planes: the network divides by another number. Nothing is sent on one rank."""
    torch.manual_seed(0)
    spatial = SpatialParallel.rehearsal({"x": 2}, {"x": 2}, place={"x": 0})
    with pytest.raises(UserError, match="Wrong is not the same on slabs"):
        check_slabs(Wrong(), spatial, channels=1, stride=(4, 4, 4))


def test_more_devices_than_stages_share_volumes() -> None:
    """Three convolutions can't be cut for eight devices, but the volume can."""
    config = Config.model_validate(
        {
            "data": {"root": "unused"},
            "curriculum": [{"patch": "whole", "batch": 1, "steps": 1}],
            "parallel": {"devices": "8x1GiB"},
        }
    )
    devices = parse_devices("8x1GiB", planning=True)
    hardware = hardware_for(kind="cpu", name="cpu", processes=8)
    subject = Subject(config, Two(), 2, (1, 1, 1), (16, 8, 8), devices, hardware)
    (plan,) = make_plans(subject)
    assert plan.choices.sharing == 8
    assert "not possible" in plan.alternatives[0].verdict


class Heavy(torch.nn.Module):
    """Large operations, which no stage divides, and large weights, which no slab does."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [1, channels, channels, channels]
        pairs = [(torch.nn.Conv3d(a, b, 3, padding=1), torch.nn.ReLU()) for a, b in pairwise(widths)]
        self.layers = torch.nn.Sequential(*chain(*pairs), torch.nn.Conv3d(channels, 2, 3, padding=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


def test_stages_on_slabs_where_neither_fits() -> None:
    """On four devices stages alone need 43 MiB and slabs alone 33; two stages on two slabs do with 32."""
    config = Config.model_validate(
        {
            "data": {"root": "unused"},
            "curriculum": [{"patch": "whole", "batch": 1, "steps": 1}],
            "parallel": {"devices": "4x32MiB"},
        }
    )
    devices = parse_devices("4x32MiB", planning=True)
    hardware = hardware_for(kind="cpu", name="cpu", processes=4)
    subject = Subject(config, Heavy(192), 2, (1, 1, 1), (20, 20, 20), devices, hardware)
    (plan,) = make_plans(subject)
    assert (plan.choices.devices, plan.choices.sharing) == (2, 2)
    assert [load.index for load in plan.devices] == [0, 1, 2, 3]
    assert plan.peak_bytes <= 32 * 2**20
    assert {other.verdict for other in plan.alternatives} == {"does not fit"}
    (again,) = plans_given(subject, [plan], source="plan.json")
    assert again.choices == plan.choices
    assert again.peak_bytes == plan.peak_bytes


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_plan_for_cuda_counts_what_a_gpu_runs(norm: str) -> None:
    """Also where there is no GPU, and fake tensors are a CPU's: CUDA's passes of norms, no padded copies of slabs."""
    network = UNet(out_channels=3, filters=8, depth=1, norm=norm, stem_stride=1).train()
    shape, grid, stride = (1, 1, 64, 16, 16), (2, 1, 1), (2, 2, 2)
    found = {}
    for kind in ("cpu", "cuda"):
        hardware = hardware_for(kind=kind, name="cpu" if kind == "cpu" else "h100")
        model = cost_network(network, shape=shape, hardware=hardware, precision="float32")
        with fake_state(network) as fake:
            hold_anew(model, fake, choices_for(model, grid, micro_batches=1, replicas=1))
            found[kind] = slab_cost(model, fake, grid, (0, 0, 0), stride=stride, loss=None)
    names = {
        kind: [{kernel.name for kernel in kernels} for kernels in (cost.tally.forward, cost.tally.backward)]
        for kind, cost in found.items()
    }
    assert {"batch_norm_stats", "batch_norm_gather_stats_with_counts", "batch_norm_elemt"} <= names["cuda"][0]
    assert {"batch_norm_backward_reduce", "batch_norm_backward_elemt"} <= names["cuda"][1]
    assert not {"native_batch_norm", "batch_norm_update_stats"} & names["cuda"][0]
    assert "batch_norm_update_stats" in names["cpu"][0]
    assert not any(name.startswith("batch_norm_backward") for name in names["cpu"][1])
    cats = {kind: sum(kernel.name == "cat" for kernel in cost.tally.forward) for kind, cost in found.items()}
    assert cats == {"cpu": cats["cpu"], "cuda": 1}, "the skip connection alone"
    assert cats["cpu"] > 1
    # What is kept and sent is the same, but for where a norm's tables are.
    assert found["cpu"].tally.saved_bytes == found["cuda"].tally.saved_bytes
    for name in ("halo_bytes", "halo_messages", "collective_bytes", "collectives"):
        assert getattr(found["cpu"], name) == getattr(found["cuda"], name) > 0


def test_stages_on_slabs_for_cuda_are_recorded_so_too() -> None:
    network = UNet(out_channels=3, filters=8, depth=1, norm="instance", stem_stride=1).train()
    problem = Problem(network, "UNet", (64, 16, 16), 1, hardware_for(kind="cuda", name="h100"), devices=4)
    around = on_slabs(problem, (2, 1, 1), stride=(2, 2, 2)).around
    assert around is not None
    graph = record_for(
        network, shape=(1, 1, 64, 16, 16), precision="float32", device="cuda", around=around((1, 1, 64, 16, 16))
    )
    names = {kernel.name for op in graph.operations for kernel in op.kernels}
    assert "batch_norm_stats" in names
    assert "native_batch_norm" not in names

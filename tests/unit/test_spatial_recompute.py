"""Which modules run again on slabs: by memory, least time first, against all choices; and what a plan may say."""

import itertools
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lampseg.config import Config
from lampseg.errors import UserError
from lampseg.hardware.device import hardware_for
from lampseg.networks import UNet
from lampseg.parallel.devices import parse_devices
from lampseg.parallel.spatial.forecast import slab_plan
from lampseg.parallel.spatial.grids import choices_for
from lampseg.parallel.spatial.recompute import Recompute
from lampseg.partition.costed import CostedNetwork, cost_network
from lampseg.partition.plan import Choices, Plan, describe_choices
from lampseg.partition.show import recomputed_text
from lampseg.training.plans import make_plans, plans_given
from lampseg.training.subject import Subject

pytestmark = pytest.mark.timeout(400)

STRIDE = (4, 4, 4)
SIZE = (48, 24, 24)


def network() -> nn.Module:
    torch.manual_seed(0)
    return UNet(out_channels=3, filters=4, depth=2, norm="batch", stem_stride=1)


@pytest.fixture(scope="module")
def model() -> CostedNetwork:
    return cost_network(network(), shape=(1, 1, *SIZE), hardware=hardware_for(kind="cpu", name="cpu", processes=3))


@pytest.fixture(scope="module")
def search(model: CostedNetwork) -> Recompute:
    return Recompute(model, choices_for(model, (3, 1, 1), micro_batches=1, replicas=1), stride=STRIDE)


def planned(search: Recompute, *names: str, roughly: bool = False) -> Plan:
    return slab_plan(search.model, replace(search.choices, recomputed=names), stride=STRIDE, roughly=roughly)


def test_bytes_of_a_choice_are_the_sum_of_its_parts(search: Recompute) -> None:
    """Within 3% of a rehearsal of it, so that choices which need more are not missed."""
    names = ["encoders.0", "decoders.1.body"]
    assert set(names) <= set(search.blocks.candidates)
    whole, both = planned(search), planned(search, *names)
    ones = [planned(search, name) for name in names]
    saved = [whole.stages[0].activation_bytes - one.stages[0].activation_bytes for one in ones]
    assert min(saved) > 0
    assert whole.stages[0].activation_bytes - both.stages[0].activation_bytes == sum(saved)
    assert both.stages[0].backward_seconds > max(one.stages[0].backward_seconds for one in ones)


def test_least_time_that_fits_against_all_choices(search: Recompute) -> None:
    """Of four modules: all 2^4 sets are rehearsed, and for every memory between the best one is found."""
    names = ["encoders.0", "encoders.1", "decoders.1", "tail.1"]
    few = Recompute(search.model, search.choices, stride=STRIDE)
    few.blocks.candidates = {name: few.blocks.candidates[name] for name in names}
    sets = [chosen for n in range(len(names) + 1) for chosen in itertools.combinations(names, n)]
    every = {chosen: planned(search, *chosen, roughly=True) for chosen in sets}
    peaks = sorted({plan.peak_bytes for plan in every.values()})
    assert every[()].peak_bytes > peaks[0]
    for memory in (peaks[0], peaks[len(peaks) // 2], peaks[-2] + 1):
        fitting = {chosen: plan for chosen, plan in every.items() if plan.peak_bytes <= memory}
        best = min(plan.step_seconds for plan in fitting.values())
        found = few.fitting([memory] * 3, exactly=False)
        assert found is not None
        assert found.peak_bytes <= memory
        assert found.step_seconds == pytest.approx(best, rel=1e-9), found.choices.recomputed
    assert few.fitting([peaks[0] - 1] * 3, exactly=False) is None
    assert few.fitting([every[()].peak_bytes] * 3, exactly=False).choices.recomputed == ()  # type: ignore[union-attr]
    assert every[few.least_memory().recomputed].peak_bytes == peaks[0]


def test_a_margin_counts(search: Recompute) -> None:
    whole = planned(search)
    found = search.fitting([whole.peak_bytes] * 3, margin=1.01)
    assert found is not None
    assert found.choices.recomputed
    assert found.peak_bytes * 1.01 <= whole.peak_bytes


class Awkward(nn.Module):
    """One module is called twice, one writes to what it is given, one keeps nothing; convolutions keep halos."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(1, 4, 3, padding=1)
        self.shared = nn.Sequential(nn.Conv3d(4, 4, 3, padding=1), nn.InstanceNorm3d(4), nn.ELU())
        self.writer = nn.Sequential(nn.ReLU(inplace=True), nn.InstanceNorm3d(4), nn.Conv3d(4, 4, 1))
        self.pool = nn.Sequential(nn.AvgPool3d(1))
        self.block = nn.Sequential(nn.InstanceNorm3d(4), nn.Conv3d(4, 4, 3, padding=1), nn.ELU())

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.pool(self.writer(self.shared(self.shared(self.stem(x))))))


def test_modules_that_can_not_run_again_are_left_alone() -> None:
    model = cost_network(Awkward(), shape=(1, 1, 16, 8, 8))
    search = Recompute(model, choices_for(model, (2, 1, 1), micro_batches=1, replicas=1), stride=(1, 1, 1))
    assert set(search.blocks.candidates) == {"stem", "block", "block.1"}


CHOICES: dict[str, Any] = {
    "devices": 1,
    "replicas": 1,
    "micro_batches": 1,
    "schedule": "1f1b",
    "cuts": (),
    "recompute": ("none",),
    "slabs": (2, 1, 1),
}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recomputed": ("a", "a")}, "each once"),
        ({"recomputed": ("",)}, "give names of modules"),
        ({"recomputed": ("a",), "slabs": (1, 1, 1)}, "not whole on slabs of a volume"),
        ({"recompute": ("all",)}, "name the modules to run again in choices.recomputed"),
    ],
)
def test_contradictions_are_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Choices(**{**CHOICES, **change}).check()


def test_one_module_inside_another(model: CostedNetwork) -> None:
    choices = Choices(**{**CHOICES, "recomputed": ("decoders.1.body", "decoders.1")})
    with pytest.raises(UserError, match=r"names 'decoders.1' and 'decoders.1.body', which runs inside it"):
        slab_plan(model, choices, stride=STRIDE)


def test_no_module_of_that_name(model: CostedNetwork) -> None:
    choices = Choices(**{**CHOICES, "recomputed": ("encoder.0",)})
    with pytest.raises(UserError, match=r"names 'encoder.0', which is no module of UNet: it has encoders, decoders"):
        slab_plan(model, choices, stride=STRIDE)


def test_in_words_and_json(search: Recompute) -> None:
    plan = planned(search, "encoders.0", "decoders.1")
    assert "recompute in 2 modules" in describe_choices(plan.choices)
    assert recomputed_text(plan).endswith(": encoders.0, decoders.1")
    assert Plan.from_dict(json.loads(plan.to_json())) == plan
    older = plan.to_dict()
    del older["choices"]["recomputed"]
    assert Plan.from_dict(older).choices.recomputed == ()


def subject(memory: str, **parallel: Any) -> Subject:
    tree = {
        "data": {"root": "unused"},
        "curriculum": [{"patch": "whole", "batch": 1, "steps": 1}],
        "parallel": {"devices": f"2x{memory}", "mode": "spatial", **parallel},
    }
    devices = parse_devices(f"2x{memory}", planning=True)
    hardware = hardware_for(kind="cpu", name="cpu", processes=2)
    return Subject(Config.model_validate(tree), network(), 3, STRIDE, SIZE, devices, hardware)


@pytest.fixture(scope="module")
def peaks() -> tuple[int, int]:
    """Bytes that two slabs need, with nothing and with everything that helps run again."""
    plain, least = (make_plans(subject("1GiB", recompute=how))[0] for how in ("none", "all"))
    assert not plain.choices.recomputed
    assert least.choices.recomputed
    assert least.peak_bytes < plain.peak_bytes
    return plain.peak_bytes, least.peak_bytes


def test_the_configuration_is_respected(peaks: tuple[int, int]) -> None:
    middle = f"{sum(peaks) // 2}B"
    (plan,) = make_plans(subject(middle))
    assert plan.choices.recomputed
    assert peaks[1] < plan.peak_bytes <= sum(peaks) // 2
    (same,) = make_plans(subject(middle, slabs=[2, 1, 1]))
    assert same.choices == plan.choices
    (plain,) = make_plans(subject(f"{peaks[0]}B"))
    assert not plain.choices.recomputed
    for how in ("none", "all_but_last"):
        with pytest.raises(UserError, match=r"parallel.recompute: auto: fits, the fullest device needs"):
            make_plans(subject(middle, recompute=how))
    with pytest.raises(UserError, match=r"at best \(running \d modules? again in the backward\) the devices need"):
        make_plans(subject(f"{peaks[1] - 1}B"))


def test_a_plan_that_was_edited_by_hand(peaks: tuple[int, int]) -> None:
    asked = subject("1GiB")
    (plan,) = make_plans(asked)
    for names in ((), ("decoders.1",), ("encoders.0", "decoders.0.body")):
        edited = replace(plan, choices=replace(plan.choices, recomputed=names))
        (made,) = plans_given(asked, [edited], source="edited.json")
        assert made.choices.recomputed == names
        assert (made.peak_bytes < plan.peak_bytes) == bool(names)
    edited = replace(plan, choices=replace(plan.choices, recomputed=("decoders.7",)))
    with pytest.raises(UserError, match=r"edited.json: plan 1 .* names 'decoders.7', which is no module of UNet"):
        plans_given(asked, [edited], source="edited.json")

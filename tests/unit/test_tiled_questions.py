"""Questions asked backwards that tiles answer: what would have to change, and the largest patch on one device."""

import re
from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor, nn

from lampseg.commands.plan import plan_fewest_devices, plan_largest_patch
from lampseg.errors import UserError
from lampseg.hardware.device import hardware_for
from lampseg.parallel.tiled.forecast import thicknesses
from lampseg.partition.plan import Plan
from lampseg.training import plans_in_tiles
from lampseg.training.plans import make_plans
from lampseg.training.plans_in_tiles import in_tiles
from lampseg.training.subject import Subject
from tests.equivalence.any_network import CLASSES
from tests.unit.test_tiled_forecast import subject


def tiled(size: int = 32) -> Plan:
    (plan,) = make_plans(subject({"devices": 1, "mode": "tiled"}, size=size))
    return plan


def between() -> str:
    """A device with too little memory for one stage, and enough for tiles."""
    (plain,) = make_plans(subject({"devices": 1, "recompute": "none", "schedule": "1f1b"}))
    return f"1x{(plain.peak_bytes + tiled().peak_bytes) // 2}B"


def refusal(parallel: dict[str, Any]) -> str:
    with pytest.raises(UserError) as refused:
        make_plans(subject(parallel))
    return str(refused.value)


@pytest.mark.parametrize(
    ("parallel", "change"),
    [
        ({"mode": "auto", "recompute": "none"}, "parallel.mode: tiled"),
        ({"mode": "auto", "recompute": "all_but_last"}, "parallel.mode: tiled with parallel.recompute: auto"),
        ({"mode": "pipeline"}, "parallel.mode: tiled"),
        ({"mode": "data"}, "parallel.mode: tiled"),
        ({"mode": "tiled", "tile": 32}, "parallel.tile: auto"),
    ],
)
def test_tiles_are_named_with_what_they_buy(parallel: dict[str, Any], change: str) -> None:
    text = refusal({"devices": between(), "schedule": "1f1b", **parallel})
    found = re.search(rf"  - {change}: (.*), the fullest device needs", text)
    assert found is not None, text
    assert found.group(1) == "fits"


def test_with_tiles_each_change_is_tried_in_tiles() -> None:
    """The devices were counted in tiles, too, which are for one: `64 devices: not possible`."""
    least = tiled().peak_bytes
    text = refusal({"devices": f"1x{int(0.8 * least)}B", "mode": "tiled"})
    assert "at best (in tiles of 2 planes) the devices need" in text
    assert "parallel.recompute" not in text
    assert "  - precision: bfloat16: " in text
    assert re.search(r"  - \d+ devices of .* with parallel.mode: auto: ", text), text
    assert re.search(r"  - a patch of .*: fits", text), text


def test_the_largest_patch_in_tiles() -> None:
    limit = int(1.001 * tiled(32).peak_bytes)
    asked = {"devices": f"1x{limit}B", "schedule": "1f1b"}
    staged, plan = plan_largest_patch(subject({**asked, "mode": "pipeline"}, size=40))
    assert plan.choices.tile == 0
    size, plan = plan_largest_patch(subject({"devices": f"1x{limit}B", "mode": "tiled"}, size=40))
    assert plan.choices.tile in thicknesses(size[0])
    assert min(size) >= 32 > max(staged)
    either, plan = plan_largest_patch(subject(asked, size=40))
    assert min(either) >= min(size), "auto takes tiles where nothing else fits"
    assert plan.peak_bytes <= limit


def test_several_devices_are_refused_by_name() -> None:
    """They were tried for every patch, so that `not even the smallest patch` fitted."""
    with pytest.raises(UserError, match="tiled is for one device, there are 2: use mode spatial"):
        plan_largest_patch(subject({"devices": "2x1GiB", "mode": "tiled"}))


class Linear(nn.Module):
    """It has no convolution."""

    stride = (1, 1, 1)

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.movedim(1, -1)).movedim(-1, 1)  # type: ignore[no-any-return]


def test_a_network_without_convolutions() -> None:
    """It was planned in tiles that changed nothing."""

    def asked(**parallel: Any) -> Subject:
        made = subject(parallel, size=8)
        return replace(made, network=Linear(), stride=(1, 1, 1))

    reason = "nothing in unet can run in tiles"
    with pytest.raises(UserError, match=reason):
        make_plans(asked(devices=1, mode="tiled"))
    with pytest.raises(UserError, match=reason):
        plan_largest_patch(asked(devices="1x1GiB", mode="tiled"))
    (plan,) = make_plans(asked(devices=1))
    assert not any("tiles" in other.label for other in plan.alternatives)
    with pytest.raises(UserError, match=r"parallel\.mode: tiled: not possible"):
        make_plans(asked(devices="1x10KiB", mode="pipeline"))


def test_the_fewest_devices_in_tiles() -> None:
    plan = plan_fewest_devices(subject({"devices": 1, "mode": "tiled"}), memory="8GiB")
    assert plan.choices.tile
    with pytest.raises(UserError, match="--fewest-devices: one device of 1MiB is not enough for tiles"):
        plan_fewest_devices(subject({"devices": 1, "mode": "tiled"}), memory="1MiB")


def test_a_thick_tile_with_a_large_workspace_does_not_end_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library's memory was taken for fixed, though it is that of a convolution of a tile."""
    card = hardware_for(kind="cuda", name="16GiB")
    problem = replace(subject({"devices": 1, "mode": "tiled"}).problem(0), hardware=card)
    load = in_tiles(problem, tile=8).plan.devices[0]
    workspace = load.library_bytes - card.reserve_bytes
    assert workspace > 1e6
    limit = load.peak_bytes - load.temporary_bytes - workspace / 2
    seen: list[int] = []
    planned = plans_in_tiles._planned
    monkeypatch.setattr(
        plans_in_tiles, "_planned", lambda asked, planes: (seen.append(planes), planned(asked, planes))[1]
    )
    in_tiles(replace(problem, memory=(limit,)), tile="auto")
    assert seen == [8, 4, 2]
    seen.clear()
    in_tiles(replace(problem, memory=(limit - 2 * workspace,)), tile="auto")
    assert seen == [8, 2], "of what can not fit, the one that lacks least"

"""Planning problems: what is chosen, from what, within which memory; and the questions asked backwards."""

import itertools
import re
from dataclasses import replace
from typing import Any

import pytest
from torch import nn

from lampseg.errors import UserError
from lampseg.hardware.device import hardware_for
from lampseg.networks import UNet
from lampseg.parallel.rehearsal import rehearse
from lampseg.partition.plan import Plan
from lampseg.partition.problem import AUTO_MICRO_BATCHES, Problem
from lampseg.partition.questions import MOST_DEVICES, fewest_devices, largest_patch, levers, remedies
from lampseg.partition.search import counts_to_try

SIZE = (32, 32, 32)
CARD = hardware_for(kind="cuda", name="16GiB")


def network(norm: str = "instance") -> nn.Module:
    return UNet(out_channels=2, filters=4, depth=2, norm=norm).train()  # type: ignore[arg-type]


INSTANCE = network()
_cache: dict[Any, Any] = {}


def problem(**changes: Any) -> Problem:
    """On GPUs without a memory limit; what was recorded is shared by all tests."""
    usual: dict[str, Any] = {
        "network": INSTANCE,
        "name": "unet",
        "size": SIZE,
        "batch": 8,
        "hardware": CARD,
        "micro_batches": "any",
    }
    options = {**usual, **changes}
    if options["network"] is INSTANCE:
        options["cache"] = _cache
    return Problem(**options)


def needs(plan: Plan) -> float:
    return float(plan.peak_bytes)


@pytest.mark.parametrize(
    ("batch", "rule", "counts"),
    [
        (1, "auto", (1,)),
        (4, "auto", (4,)),
        (4, 2, (2,)),
        (2, 5, (2,)),
        (16, "any", counts_to_try(16)),
        (16, "auto", (AUTO_MICRO_BATCHES,)),
    ],
)
def test_numbers_of_micro_batches(batch: int, rule: Any, counts: tuple[int, ...]) -> None:
    assert problem(batch=batch, micro_batches=rule).counts() == counts


@pytest.mark.parametrize("devices", [1, 2, 5])
@pytest.mark.parametrize(("batch", "count"), [(4, 4), (100, AUTO_MICRO_BATCHES)])
def test_their_number_is_the_same_for_any_devices(batch: int, count: int, devices: int) -> None:
    """One that followed the devices would change what BatchNorm computes, and everything else's rounding."""
    assert problem(batch=batch, devices=devices, micro_batches="auto").counts() == (count,)
    assert problem(batch=batch, micro_batches="any").counts() == counts_to_try(batch)


@pytest.mark.parametrize("batch", range(1, 70))
def test_counts_to_try(batch: int) -> None:
    counts = counts_to_try(batch)
    assert 1 <= len(counts) <= 9
    assert {1, batch} <= set(counts)
    assert len({-(-batch // count) for count in counts}) == len(counts), "two numbers give the same micro-batch"


def test_without_a_limit_copies_share_the_batch() -> None:
    plan = problem(devices=2).solve().plan
    assert (plan.choices.replicas, plan.choices.devices) == (2, 1)
    assert plan.choices.recompute == ("none",)
    labels = [other.label for other in plan.alternatives]
    assert any("2 devices, 1f1b" in label for label in labels)
    assert all(other.verdict for other in plan.alternatives)


def test_a_single_volume_is_split() -> None:
    plan = problem(batch=1, devices=2).solve().plan
    assert (plan.choices.replicas, plan.choices.devices) == (1, 2)


def test_the_plan_is_the_fastest_of_all_that_fit() -> None:
    """Every way on its own, against the search over all."""
    asked = problem(devices=4)
    best = asked.solve().plan
    seconds = []
    for schedule, replicas, count in itertools.product(("gpipe", "1f1b", "interleaved", "v"), (1, 2), (1, 2, 4, 8)):
        one = replace(asked, schedule=schedule, replicas=replicas, micro_batches=count)
        if replicas <= count:
            seconds.append(one.solve().plan.step_seconds)
    assert best.step_seconds <= min(seconds) * 1.01


def test_memory_decides() -> None:
    """With less and less of it: copies, then recompute, then nothing fits."""
    asked = problem(devices=2, batch=8, micro_batches=8, schedule="gpipe")
    free = asked.solve().plan
    reserve = CARD.reserve_bytes
    ways = []
    for share in (1.1, 0.9, 0.7, 0.5, 0.3, 0.02):
        limit = reserve + (needs(free) - reserve) * share
        found = replace(asked, memory=(limit, limit)).solve()
        ways.append((found.fits, found.plan.choices.replicas, set(found.plan.choices.recompute) != {"none"}))
        assert found.fits == all(load.peak_bytes <= limit for load in found.plan.devices)
    assert ways[0] == (True, 2, False)
    assert any(fits and again for fits, _, again in ways), "recompute was never needed"
    assert not ways[-1][0]
    fits = [fits for fits, _, _ in ways]
    assert fits == sorted(fits, reverse=True)


def test_devices_may_differ() -> None:
    asked = problem(batch=1, devices=2)
    free = asked.solve().plan
    reserve = CARD.reserve_bytes
    small = reserve + (free.devices[0].peak_bytes - reserve) * 0.6
    found = replace(asked, memory=(small, 1e12), recompute="none").solve()
    assert found.fits
    assert found.plan.devices[0].peak_bytes <= small
    assert [load.memory_bytes for load in found.plan.devices] == [small, 1e12]
    assert found.plan.cuts != free.cuts


def test_what_a_rehearsal_finds_decides() -> None:
    """The estimate of every possible stage may be wrong; the plan that is returned fits by its exact bytes."""
    asked = problem(devices=2, batch=4, replicas=1, rehearse=rehearse)
    free = asked.solve().plan
    limit = CARD.reserve_bytes + (free.peak_bytes - CARD.reserve_bytes) * 0.7
    found = replace(asked, memory=(limit, limit)).solve()
    assert found.fits
    assert all(load.peak_bytes <= limit for load in found.plan.devices)
    exact = rehearse(asked.costed(found.plan.micro_batches), found.plan)
    assert [load.peak_bytes for load in exact] == [load.peak_bytes for load in found.plan.devices]


def test_a_margin_leaves_room() -> None:
    asked = problem(devices=2, batch=2, replicas=1)
    limit = CARD.reserve_bytes + (needs(asked.solve().plan) - CARD.reserve_bytes) * 1.05
    margin = 1 + 0.3 * (limit - CARD.reserve_bytes) / limit
    usual = replace(asked, memory=(limit, limit)).solve()
    careful = replace(asked, memory=(limit, limit), margin=margin).solve()
    assert usual.fits
    assert careful.fits
    assert needs(usual.plan) * margin > limit
    assert needs(careful.plan) * margin <= limit


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"devices": 4, "replicas": 3}, "parallel.replicas: 3 copies of the network can't share 4 device(s) evenly"),
        ({"devices": 4, "replicas": 4, "batch": 2}, "4 copies of the network need as many micro-batches, a step of 2"),
        ({"devices": 99, "batch": 1}, "99 devices: unet can be cut into at most"),
    ],
)
def test_what_is_impossible_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        problem(**changes).solve()


def test_given_choices_are_planned_as_they_are() -> None:
    asked = problem(devices=2, replicas=1)
    made = asked.solve().plan
    again = asked.given(made.choices, digest=made.digest)
    assert again.choices == made.choices
    assert again.step_seconds == made.step_seconds
    with pytest.raises(UserError, match="another network than unet"):
        asked.given(made.choices, digest="0" * 16)
    with pytest.raises(UserError, match=r"does not fit: device 0 needs .* it has 1 MiB"):
        replace(asked, memory=(2.0**20, 2.0**20)).given(made.choices, digest=made.digest)


def test_the_largest_patch_and_no_larger_one() -> None:
    asked = problem(batch=1, devices=2, memory=(CARD.reserve_bytes + 3e7,) * 2)
    stride, volume = (8, 8, 8), (64, 60, 200)
    found = largest_patch(asked, stride=stride, volume=volume)
    assert found is not None
    size, plan = found
    assert plan.input_shape[2:] == size
    assert all(edge % step == 0 for edge, step in zip(size, stride))
    edge = max(size)
    assert size == tuple(min(edge, whole) for whole in (64, 64, 200))
    larger = tuple(min(edge + 8, whole) for whole in (64, 64, 200))
    assert not replace(asked, size=larger).solve().fits
    assert largest_patch(replace(asked, memory=(1e12,) * 2), stride=stride, volume=volume)[0] == (64, 64, 200)  # type: ignore[index]
    assert largest_patch(replace(asked, memory=(1e3,) * 2), stride=stride, volume=volume) is None


def test_the_fewest_devices_and_no_fewer() -> None:
    asked = problem(batch=1, recompute="none")
    alone = asked.solve().plan
    memory = CARD.reserve_bytes + (alone.peak_bytes - CARD.reserve_bytes) * 0.75
    plan = fewest_devices(asked, memory=memory)
    assert plan is not None
    count = plan.choices.devices
    assert 1 < count < MOST_DEVICES
    assert plan.peak_bytes <= memory
    fewer = replace(asked, devices=count - 1, memory=(memory,) * (count - 1), schedule="1f1b")
    assert not fewer.solve().fits
    assert fewest_devices(asked, memory=1e3) is None


def test_what_would_have_to_change() -> None:
    asked = problem(batch=2, devices=2, micro_batches=1, recompute="none", memory=(CARD.reserve_bytes + 2e6,) * 2)
    found = asked.solve()
    assert not found.fits
    changes = {lever.change: lever for lever in levers(asked, stride=(8, 8, 8))}
    assert {"parallel.recompute: auto", "precision: bfloat16"} <= changes.keys()
    assert any("parallel.micro_batches: 2" in change for change in changes)
    assert any("devices of" in change for change in changes)
    patch = next(lever for change, lever in changes.items() if change.startswith("a patch of"))
    assert patch.fits
    text = remedies(asked, found.plan, stride=(8, 8, 8))
    assert "unet on 32x32x32 with batch 2 does not fit" in text
    for lever in changes.values():
        assert lever.text() in text


def test_what_fits_to_the_byte_is_found_although_the_estimate_is_too_high() -> None:
    """A whole head and neck volume fitted one card of 16 GiB, and two were planned."""
    estimated = needs(problem(batch=1).solve().plan)
    exact = problem(batch=1, rehearse=rehearse)
    needed = needs(exact.solve().plan)
    assert needed < estimated
    limit = needed * 1.001
    found = replace(exact, memory=(limit,), recompute="none").solve()
    assert found.fits
    assert needs(found.plan) <= limit
    assert fewest_devices(exact, memory=limit).choices.devices == 1  # type: ignore[union-attr]


def test_one_device_with_too_little_memory_runs_its_network_in_several_stages() -> None:
    """With one stage there is nothing to gain by recompute: its backward follows its forward at once."""
    exact = problem(batch=1, rehearse=rehearse)
    limit = CARD.reserve_bytes + 0.93 * (needs(exact.solve().plan) - CARD.reserve_bytes)
    assert not replace(exact, memory=(limit,), recompute="none").solve().fits
    found = replace(exact, memory=(limit,)).solve()
    assert found.fits
    assert found.plan.choices.stages > 1
    assert "all" in found.plan.choices.recompute

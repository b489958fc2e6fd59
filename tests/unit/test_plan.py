"""The Plan: a value that is printed, written, edited and read; what it says is what the cost model found."""

import dataclasses
import io
import json
import re
from typing import Any

import pytest
from rich.console import Console

from lampseg.errors import UserError
from lampseg.networks import UNet
from lampseg.partition import Plan, cost_network, make_plan, plans_from_json, plans_to_json
from lampseg.partition.costed import CostedNetwork
from lampseg.partition.forecast import plan_of
from lampseg.partition.plan import Choices, describe_choices
from lampseg.partition.show import drawing, plan_paragraph, show_plan
from lampseg.units import format_bytes, format_seconds, parse_bytes

SHAPE = (1, 1, 32, 32, 32)
MODES = ("none", "all", "none")


def network() -> UNet:
    return UNet(filters=4, depth=2)


@pytest.fixture(scope="module")
def costed() -> CostedNetwork:
    return cost_network(network(), shape=SHAPE)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(network(), shape=SHAPE, devices=3, micro_batches=4, schedule="gpipe", recompute="all")


def choices(**changes: Any) -> Choices:
    usual: dict[str, Any] = {
        "devices": 2,
        "replicas": 1,
        "micro_batches": 4,
        "schedule": "1f1b",
        "cuts": (20,),
        "recompute": ("none", "all"),
    }
    return Choices(**{**usual, **changes})


def test_reads_what_it_wrote(plan: Plan) -> None:
    assert Plan.from_dict(json.loads(plan.to_json())) == plan
    assert plans_from_json(plans_to_json([plan, plan])) == (plan, plan)


def test_names_of_the_fields(plan: Plan) -> None:
    tree = json.loads(plan.to_json())
    assert set(tree) == {
        "network", "input_shape", "precision", "operations", "digest", "hardware", "choices", "stages", "devices",
        "links", "step_seconds", "bubble", "alternatives", "version",
    }  # fmt: skip
    assert set(tree["choices"]) == {
        "devices", "replicas", "micro_batches", "schedule", "cuts", "recompute", "limit", "slabs",
        "recomputed", "tile",
    }  # fmt: skip
    assert tree["choices"]["cuts"] == [stage["first"] for stage in tree["stages"][1:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 99}, "version 99"),
        ({"version": 1}, "version 1 is not 2: make the plan again"),
        ({"stages": None}, "not a plan"),
        ({"colour": "red"}, "colour"),
        ({"stages": [{"index": 0}]}, "not a plan"),
        ({"choices": {}}, "not a plan"),
    ],
)
def test_another_file_is_refused(plan: Plan, change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Plan.from_dict(plan.to_dict() | change)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"plans": 3}', '{"version": 1}'])
def test_text_that_is_no_plan(text: str) -> None:
    with pytest.raises(UserError, match=r"plan\.json"):
        plans_from_json(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"devices": 0}, "choices.devices is 0; give a whole number above 0"),
        ({"micro_batches": True}, "choices.micro_batches is True"),
        ({"replicas": 5}, "5 replicas share 4 micro-batch"),
        ({"schedule": "zigzag"}, "choices.schedule is 'zigzag'; choose one of gpipe, 1f1b, interleaved, v"),
        ({"schedule": "v"}, "2 stages on 2 devices: it needs two stages a device"),
        ({"schedule": "interleaved", "cuts": (9, 20), "recompute": MODES}, "3 stages on 2 devices: it needs as many"),
        ({"cuts": (9, 20), "recompute": MODES}, "3 stages on 2 devices: it needs one stage a device"),
        ({"recompute": ("none",)}, "choices.recompute has 1 entries for the 2 stages"),
        ({"recompute": ("none", "some")}, "choices.recompute has 'some'; choose of none, all_but_last, all"),
        ({"cuts": ("a",)}, "choices.cuts is"),
        ({"limit": 0}, "choices.limit is 0"),
    ],
)
def test_choices_that_contradict_each_other(change: dict[str, Any], words: str) -> None:
    choices().check()
    with pytest.raises(UserError, match=re.escape(words)):
        choices(**change).check()


def test_cuts_that_are_impossible(costed: CostedNetwork) -> None:
    last = len(costed.graph.operations) - 1
    with pytest.raises(UserError, match=f"cut 999: cuts must rise from 1 to {last}"):
        plan_of(costed, choices(cuts=(999,)))
    forbidden = min(costed.graph.forbidden)
    with pytest.raises(UserError, match=f"cut {forbidden} .* move it before or after"):
        plan_of(costed, choices(cuts=(forbidden,)))


def test_stages_add_up_to_the_network(plan: Plan) -> None:
    whole = make_plan(network(), shape=SHAPE).stages[0]
    assert sum(stage.parameters for stage in plan.stages) == sum(p.numel() for p in network().parameters())
    assert sum(stage.parameter_bytes for stage in plan.stages) == whole.parameter_bytes
    assert sum(stage.flops for stage in plan.stages) == pytest.approx(whole.flops)
    assert plan.stages[-1].forward_seconds == 0, "with recompute, the last stage's only forward is in its backward"
    seconds = sum(stage.forward_seconds + stage.backward_seconds for stage in plan.stages)
    again = sum(stage.forward_seconds for stage in plan.stages)
    assert seconds - again == pytest.approx(whole.forward_seconds + whole.backward_seconds)
    assert sum(stage.receive_bytes for stage in plan.stages) == sum(stage.send_bytes for stage in plan.stages)
    assert sum(link.nbytes for link in plan.links) == sum(stage.send_bytes for stage in plan.stages)
    assert [stage.first for stage in plan.stages[1:]] == [stage.last for stage in plan.stages[:-1]]
    assert plan.stages[-1].last == plan.operations


def test_devices_add_up_to_their_peak(costed: CostedNetwork) -> None:
    for change in ({}, {"schedule": "v", "cuts": (9, 20, 30), "recompute": ("none", "all", "none", "all")}):
        plan = plan_of(costed, choices(**change))
        for load in plan.devices:
            mine = [stage for stage in plan.stages if stage.device == load.index]
            assert sum(load.parts().values()) == load.peak_bytes
            assert load.parameter_bytes == sum(stage.parameter_bytes for stage in mine)
            assert load.activation_bytes == sum(stage.activation_bytes * stage.in_flight for stage in mine)
            assert load.tensor_bytes == load.peak_bytes - load.library_bytes


def test_what_stays_on_a_device_is_not_sent(costed: CostedNetwork) -> None:
    plan = plan_of(costed, choices(schedule="v", cuts=(9, 20, 30), recompute=("none",) * 4))
    assert [stage.device for stage in plan.stages] == [0, 1, 1, 0]
    local = [link for link in plan.links if (link.source, link.target) in {(0, 3), (1, 2)}]
    assert local
    assert all(link.seconds == 0 for link in local)
    away = sum(link.nbytes for link in plan.links if link not in local)
    assert sum(stage.receive_bytes for stage in plan.stages) == away


def test_memory_limits_shift_the_cut() -> None:
    free = make_plan(network(), shape=SHAPE, devices=2)
    first = free.devices[0].peak_bytes
    limited = make_plan(network(), shape=SHAPE, devices=2, memory=(0.7 * first, 1e12))
    assert limited.devices[0].peak_bytes <= 0.7 * first
    assert limited.cuts != free.cuts


def test_what_does_not_fit_says_so() -> None:
    with pytest.raises(UserError, match=r"does not fit.*it needs .*MiB.*they have 1 MiB, 1 MiB.*recompute"):
        make_plan(network(), shape=SHAPE, devices=2, memory=(2**20, 2**20))


def test_more_stages_than_operations() -> None:
    with pytest.raises(UserError, match="99 stages: UNet can be cut into at most"):
        make_plan(network(), shape=SHAPE, devices=99)


def test_recompute_needs_less_memory() -> None:
    none, recomputed = (
        make_plan(network(), shape=SHAPE, micro_batches=8, schedule="gpipe", recompute=mode).devices[0].tensor_bytes
        for mode in ("none", "all")
    )
    assert recomputed < 0.4 * none


def test_bubble_of_equal_stages_is_the_known_bound(plan: Plan) -> None:
    stages = tuple(
        dataclasses.replace(stage, recompute="none", forward_seconds=1.0, backward_seconds=2.0) for stage in plan.stages
    )
    links = tuple(dataclasses.replace(link, seconds=0.0) for link in plan.links)
    for count in (1, 4, 16):
        even = dataclasses.replace(plan, stages=stages, links=links)
        assert even.timetable(count).bubble == pytest.approx(1 - count / (count + 2))


def test_the_terminal_shows_everything(plan: Plan) -> None:
    text = io.StringIO()
    Console(file=text, width=200).print(show_plan(plan))
    for stage in plan.stages:
        assert stage.begins.split(" @ ")[-1] in text.getvalue()
    assert "memory in MiB" in text.getvalue()
    for load in plan.devices:
        assert f"{load.peak_bytes / 2**20:.2f}" in text.getvalue()
    assert "UNet on 1x1x32x32x32: 3 devices, gpipe, 4 micro-batches, recompute all" in text.getvalue()
    assert format_bytes(plan.devices[0].peak_bytes) in plan_paragraph(plan) or "fullest" in plan_paragraph(plan)


def test_the_drawing_is_the_timetable(plan: Plan) -> None:
    lanes = [line.split()[-1] for line in drawing(plan, width=60).plain.splitlines()[1:]]
    assert [len(lane) for lane in lanes] == [60] * 3
    for device, lane in enumerate(lanes):
        table = plan.timetable()
        busy = sum(entry.end - entry.start for entry in table.devices[device]) / table.seconds
        assert 1 - lane.count(".") / 60 == pytest.approx(busy, abs=0.1)
        order = [symbol for n, symbol in enumerate(lane) if symbol != "." and symbol != lane[n - 1]]
        assert order == ([*"0123", *"abcd"] if device < 2 else [*"abcd"])


def test_choices_in_words() -> None:
    assert describe_choices(choices()) == "2 devices, 1f1b, 4 micro-batches, recompute in stage 1"
    one = choices(devices=1, replicas=4, cuts=(), recompute=("none",))
    assert describe_choices(one) == "4 x 1 device, 4 micro-batches, recompute none"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (2**11, "2 KiB"), (2**20, "1 MiB"), (3 * 2**39, "1536.00 GiB")]
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.0123, "12.3 ms"), (4.56, "4.56 s"), (200.0, "3 min 20 s")])
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("text", "count"), [("16GiB", 2**34), ("1.5 gib", 1.5 * 2**30), ("10GB", 1e10), ("7", 7), ("x", None), ("0", None)]
)
def test_amounts_of_memory(text: str, count: float | None) -> None:
    assert parse_bytes(text) == count

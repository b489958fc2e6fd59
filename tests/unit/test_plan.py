"""The Plan: a value that is printed, written and read; what it says is what the cost model found."""

import io
import json

import pytest
from rich.console import Console

from lampseg.errors import UserError
from lampseg.networks import UNet
from lampseg.partition import Plan, Training, format_bytes, make_plan, plans_from_json, plans_to_json
from lampseg.partition.planner import costs_of, record_for

SHAPE = (1, 1, 32, 32, 32)


def network() -> UNet:
    return UNet(filters=4, depth=2)


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(network(), shape=SHAPE, stages=3, training=Training(4, "gpipe", "all"))


def test_reads_what_it_wrote(plan: Plan) -> None:
    assert Plan.from_dict(json.loads(plan.to_json())) == plan
    assert plans_from_json(plans_to_json([plan, plan])) == (plan, plan)


def test_names_of_the_fields(plan: Plan) -> None:
    tree = json.loads(plan.to_json())
    assert set(tree) == {
        "network", "input_shape", "micro_batches", "schedule", "recompute", "precision", "operations", "digest",
        "stages", "version", "cuts", "bubble",
    }  # fmt: skip
    assert tree["cuts"] == [stage["first"] for stage in tree["stages"][1:]]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"version": 99}, "version 99"),
        ({"stages": None}, "not a plan"),
        ({"colour": "red"}, "colour"),
        ({"stages": [{"index": 0}]}, "not a plan"),
    ],
)
def test_another_file_is_refused(plan: Plan, change: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Plan.from_dict(plan.to_dict() | change)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"plans": 3}', '{"version": 1}'])
def test_text_that_is_no_plan(text: str) -> None:
    with pytest.raises(UserError, match=r"plan\.json"):
        plans_from_json(text)


def test_stages_add_up_to_the_network(plan: Plan) -> None:
    whole = make_plan(network(), shape=SHAPE).stages[0]
    assert sum(stage.parameters for stage in plan.stages) == sum(p.numel() for p in network().parameters())
    assert sum(stage.parameter_bytes for stage in plan.stages) == whole.parameter_bytes
    assert sum(stage.flops for stage in plan.stages) == pytest.approx(whole.flops)
    assert sum(stage.time_share for stage in plan.stages) == pytest.approx(1)
    assert sum(stage.receive_bytes for stage in plan.stages) == sum(stage.send_bytes for stage in plan.stages)
    assert sum(stage.activation_bytes for stage in plan.stages) >= whole.activation_bytes
    assert [stage.first for stage in plan.stages[1:]] == [stage.last for stage in plan.stages[:-1]]
    assert plan.stages[-1].last == plan.operations


def test_memory_limits_shift_the_cut() -> None:
    free = make_plan(network(), shape=SHAPE, stages=2)
    first = free.stages[0].peak_bytes
    limited = make_plan(network(), shape=SHAPE, stages=2, memory=(0.7 * first, 1e12))
    assert limited.stages[0].peak_bytes <= 0.7 * first
    assert limited.cuts != free.cuts


def test_what_does_not_fit_says_so() -> None:
    with pytest.raises(UserError, match=r"does not fit.*it needs .*MiB.*they have 1 MiB, 1 MiB.*recompute"):
        make_plan(network(), shape=SHAPE, stages=2, memory=(2**20, 2**20))


def test_more_stages_than_operations() -> None:
    with pytest.raises(UserError, match="99 stages: UNet can be cut into at most"):
        make_plan(network(), shape=SHAPE, stages=99)


def test_recompute_needs_less_memory() -> None:
    none, recomputed = (
        make_plan(network(), shape=SHAPE, training=Training(8, "gpipe", mode)).stages[0].peak_bytes
        for mode in ("none", "all")
    )
    assert recomputed < 0.4 * none


def test_bubble_of_equal_stages_is_the_known_bound(plan: Plan) -> None:
    import dataclasses

    stages = tuple(dataclasses.replace(stage, time_share=1 / 3) for stage in plan.stages)
    for count in (1, 4, 16):
        even = dataclasses.replace(plan, stages=stages, micro_batches=count)
        assert even.bubble == pytest.approx(1 - count / (count + 2))


def test_the_table_shows_every_stage(plan: Plan) -> None:
    text = io.StringIO()
    Console(file=text, width=200).print(plan.table())
    for stage in plan.stages:
        assert stage.begins in text.getvalue()
        assert format_bytes(stage.peak_bytes) in text.getvalue()
    assert "UNet on 1x1x32x32x32: 3 stage(s), 4 micro-batch(es), gpipe, recompute all" in text.getvalue()


def test_the_plan_repeats_the_costs(plan: Plan) -> None:
    built = network()
    costs = costs_of(record_for(built, shape=SHAPE, precision="float32", device="cpu"), built, device="cpu")
    for stage in plan.stages:
        span = (costs.starts.index(stage.first), [*costs.starts, plan.operations].index(stage.last))
        assert stage.activation_bytes == costs.saved[span]
        assert stage.receive_bytes == costs.received[span]
        peak = costs.peak_bytes(Training(4, "gpipe", "all"), stage=stage.index, stages=3)
        assert stage.peak_bytes == peak[span]


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 B"), (1023, "1023 B"), (2**11, "2 KiB"), (2**20, "1 MiB"), (3 * 2**39, "1536.00 GiB")]
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text

"""Networks of MONAI and nnU-Net, built from a configuration: split in two and in four, they equal one process."""

import copy
import itertools
import random
from typing import Any

import pytest
import torch
from monai.networks.nets.swin_unetr import compute_mask
from torch import Tensor, nn

from lampseg.parallel.pipeline import runner
from lampseg.parallel.state import hold, named_state, owners_of
from lampseg.partition import Graph, Plan, costed, place
from lampseg.training.checkpoint import by_first_name, check_fits, with_all_names
from tests.equivalence import one_device
from tests.equivalence.any_network import NETWORKS, RANDOM, build, inputs, without_dropout
from tests.equivalence.one_device import assert_same, run_device, run_whole, together
from tests.equivalence.remembered import planned_once, recorded_once
from tests.equivalence.threads import Messages, run_threads

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _recorded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages are threads here: each would record the same again."""
    for module in (runner, costed, one_device):
        monkeypatch.setattr(module, "record_for", recorded_once)


def graph_of(network: nn.Module, x: Tensor) -> Graph:
    return recorded_once(network, shape=tuple(x.shape), precision="float64", device="cpu")


def plan_of(network: nn.Module, x: Tensor, stages: int) -> Plan:
    return planned_once(network, shape=tuple(x.shape), devices=stages, precision="float64")


def planned(network: nn.Module, x: Tensor, stages: int) -> tuple[int, ...]:
    return plan_of(network, x, stages).cuts


def drawn(network: nn.Module, x: Tensor, stages: int) -> tuple[int, ...]:
    """Cuts where no planner would put them."""
    graph = graph_of(network, x)
    allowed = [at for at in range(1, len(graph.operations)) if at not in graph.forbidden]
    return tuple(sorted(random.Random(graph.digest).sample(allowed, stages - 1)))


WAYS: tuple[tuple[int, Any, str, str], ...] = (
    (2, planned, "1f1b", "none"),
    (4, planned, "gpipe", "all"),
    (2, drawn, "gpipe", "all"),
    (4, drawn, "1f1b", "none"),
)
SLOW = ("swinunetr", "swinunetr2d", "unetr")
"""These take part in the first two; their other tests draw cuts."""


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_one_process(name: str) -> None:
    network, data = without_dropout(build(name)), inputs(name)
    expected = run_whole(copy.deepcopy(network), data, predicted=1)
    assert len(expected["losses"]) == len(data) > 1
    for stages, choose, *way in WAYS[:2] if name in SLOW else WAYS:
        cuts = choose(network, data[0], stages)
        found = run_threads(run_device, stages, network, cuts, data, *way, None, None, 1)
        assert_same(together(found), expected, label=f"cuts {cuts}, {way}")


@pytest.mark.parametrize("name", RANDOM)
def test_dropout_does_not_depend_on_the_split(name: str) -> None:
    """Neither that of elements, of channels, of attention weights, nor of whole paths."""
    network, data = build(name, **RANDOM[name]), inputs(name)[:1]
    alone = together(run_threads(run_device, 1, network, (), data, "1f1b", "none", None, None, 0))
    cuts = drawn(network, data[0], 4)
    four = together(run_threads(run_device, 4, network, cuts, data, "gpipe", "all", None, None, 0))
    assert_same(four, alone, label=f"cuts {cuts}")
    without = run_whole(without_dropout(build(name, **RANDOM[name])), data, predicted=0)
    assert alone["losses"] != pytest.approx(without["losses"], rel=1e-6), "nothing was dropped"


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_registered_twice_is_one(name: str) -> None:
    """nnU-Net's decoder holds its encoder, its blocks hold each convolution under two names, and so does DynUNet."""
    network = build(name)
    graph, plan = graph_of(network, inputs(name)[0]), plan_of(network, inputs(name)[0], 4)
    sizes = {key: parameter.numel() for key, parameter in network.named_parameters()}
    read = {key for op in graph.operations for key in op.state}
    assert read <= named_state(network).keys()
    unread = sum(size for key, size in sizes.items() if key not in read)
    assert sum(stage.parameters for stage in plan.stages) + unread == sum(sizes.values())

    owners = owners_of(network, place(graph, plan.cuts))
    assert owners.keys() == named_state(network).keys()
    before = {key: tensor.clone() for key, tensor in network.state_dict().items()}
    once = {key: tensor.clone() for key, tensor in named_state(network).items()}
    gathered = {}
    for stage in range(4):
        mine = copy.deepcopy(network)
        hold(mine, owned=[key for key, owner in owners.items() if owner == stage], device=torch.device("cpu"))
        assert named_state(mine).keys() == owners.keys(), "tied tensors came apart"
        held = {key: tensor for key, tensor in named_state(mine).items() if not tensor.is_meta}
        assert not held.keys() & gathered.keys()
        gathered |= held
    saved = with_all_names(network, gathered)
    assert saved.keys() == before.keys()
    check_fits(network, saved, source="the file")
    assert by_first_name(network, saved).keys() == once.keys()
    fresh = build(name)
    for parameter in fresh.parameters():
        parameter.data.zero_()
    fresh.load_state_dict(saved)
    for key, tensor in before.items():
        assert torch.equal(fresh.state_dict()[key], tensor), key


def test_nnunet_and_dynunet_register_twice() -> None:
    """Else the test above shows nothing."""
    for name in ("plainconvunet", "residualencoderunet", "dynunet"):
        network = build(name)
        assert len(network.state_dict()) > len(named_state(network))


def test_swin_masks_travel_when_they_are_complete() -> None:
    """The trap that SwinUNETR is.

    An early prototype of the pipeline mismatched its messages here. Each level makes its attention mask with
    `torch.zeros(..., device=x.device)`: a tensor that comes from no other, on the device of one that may only be a
    placeholder. It then writes 27 regions into it, with `mask[...] = n`, a call that returns nothing; whoever sends
    the tensor when it was made sends zeros. The finished mask needs no gradient, so none must be waited for, and it
    is read far away, by every second block. Between the two the windows are views of views, whose `contiguous()`
    copies on one device and returns its argument on the stage that received them.
    """
    network, data = build("swinunetr"), inputs("swinunetr")[:1]
    graph = graph_of(network, data[0])
    made = next(op.index for op in graph.operations if op.name == "zeros")
    writes = [op.index for op in graph.operations if op.name == "__setitem__" and (made, 0) in op.reads]
    assert len(writes) == 27
    assert graph.ready_at((made, 0)) == writes[-1]
    assert graph.forbidden >= set(range(made + 1, writes[-1] + 1))
    second_block = next(op.index for op in graph.operations if op.module == "swinViT.layers1.0.blocks.1.norm1")
    mask = next(op.index for op in reversed(graph.operations[:second_block]) if op.name == "masked_fill")

    # The mask is made on a stage that has no x, leaves it half finished, and passes a stage that only reads it.
    cuts = (made, writes[-1] + 1, second_block)
    messages: Messages = {}
    found = run_threads(run_device, 4, network, cuts, data, "1f1b", "all", None, None, 0, messages=messages)
    assert_same(together(found), run_whole(network, data, predicted=0), label=f"cuts {cuts}")

    half_finished = messages["forward", 1, 2][0]
    assert sorted(set(half_finished.flatten().tolist())) == list(range(27))
    expected = compute_mask([16, 18, 16], (4, 3, 4), (2, 1, 2), torch.device("cpu"))
    sent = [t for t in messages["forward", 2, 3] if t.shape == expected.shape and torch.equal(t, expected)]
    assert len(sent) == 1, "once, though several operations read it"
    assert graph.values[mask, 0].requires_grad is False
    for source, target in itertools.combinations(range(4), 2):
        values = [value for value, readers in place(graph, cuts).consumers().items() if target in readers]
        values = [value for value in values if place(graph, cuts).stage_of(value[0]) == source]
        returned = messages.get(("backward", target, source), [])
        assert len(returned) == sum(graph.values[value].carries_gradient for value in values)

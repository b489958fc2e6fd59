"""The automatic split of our U-Net carries exactly the values of the paper's Equation 3."""

import itertools

import pytest
import torch
from torch import Tensor

from lampseg.networks import UNet
from lampseg.partition import Graph, Placement, place, record_for
from tests.equivalence.one_device import run_device
from tests.equivalence.threads import Messages, run_threads

SHAPE = (1, 1, 64, 32, 32)
BLOCKS = ["e1", "e2", "e3", "e4", "e5", "d4", "d3", "d2", "d1", "tail"]
# Equation 3: who reads what. e_{i,0} goes to the next encoder block, e_{i,1} to decoder block d_i.
READERS = {
    **{f"e{i}": {f"e{i + 1}", f"d{i}"} for i in range(1, 5)},
    "e5": {"d4"},
    **{f"d{i}": {f"d{i - 1}"} for i in range(2, 5)},
    "d1": {"tail"},
    "tail": set(),
}


def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(filters=2, out_channels=2).double()


def module_of(block: str) -> str:
    if block == "tail":
        return "tail"
    level = int(block[1])
    return f"encoders.{level - 1}" if block[0] == "e" else f"decoders.{4 - level}"


def operations_of(graph: Graph, block: str) -> list[int]:
    name = module_of(block)
    return [op.index for op in graph.operations if op.module == name or op.module.startswith(f"{name}.")]


@pytest.fixture(scope="module")
def graph() -> Graph:
    return record_for(unet(), shape=SHAPE, precision="float64", device="cpu")


def placed(graph: Graph, firsts: tuple[str, ...]) -> Placement:
    """Stages that begin with the named blocks."""
    return place(graph, [operations_of(graph, block)[0] for block in firsts])


def crossings(placement: Placement) -> list[tuple[str, int, int]]:
    """What the split sends, with the value in the names of the paper: (block's output, from, to)."""
    names = {(operations_of(placement.graph, block)[-1], 0): block for block in BLOCKS}
    return sorted(
        (names.get(value, f"something else: {value}"), placement.stage_of(value[0]), target)
        for value, targets in placement.consumers().items()
        for target in targets
    )


def expected_crossings(firsts: tuple[str, ...]) -> list[tuple[str, int, int]]:
    starts = [BLOCKS.index(block) for block in firsts]
    stage = {block: sum(start <= n for start in starts) for n, block in enumerate(BLOCKS)}
    return sorted(
        (block, stage[block], target)
        for block, readers in READERS.items()
        for target in {stage[reader] for reader in readers} - {stage[block]}
    )


def test_the_table_of_the_docs(graph: Graph) -> None:
    placement = placed(graph, ("e3", "d2"))
    assert crossings(placement) == [("d3", 1, 2), ("e1", 0, 2), ("e2", 0, 1), ("e2", 0, 2)]


@pytest.mark.parametrize("stages", [2, 3, 4, 5])
def test_every_cut_between_blocks_carries_equation_3(graph: Graph, stages: int) -> None:
    for firsts in itertools.combinations(BLOCKS[1:], stages - 1):
        assert crossings(placed(graph, firsts)) == expected_crossings(firsts), firsts


def test_one_block_a_stage_sends_both_copies(graph: Graph) -> None:
    found = crossings(placed(graph, tuple(BLOCKS[1:])))
    for i in range(1, 5):
        e, boundary, skip = BLOCKS.index(f"e{i}"), BLOCKS.index(f"e{i + 1}"), BLOCKS.index(f"d{i}")
        wanted = {(f"e{i}", e, boundary), (f"e{i}", e, skip)}  # e_{i,0} and e_{i,1}
        assert {crossing for crossing in found if crossing[0] == f"e{i}"} == wanted


def test_what_travels_is_the_blocks_output() -> None:
    network, firsts = unet(), ("e3", "d2")
    graph = record_for(network, shape=SHAPE, precision="float64", device="cpu")
    cuts = placed(graph, firsts).cuts
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    outputs: dict[str, Tensor] = {}
    reference = unet()
    for block in BLOCKS:
        reference.get_submodule(module_of(block)).register_forward_hook(
            lambda _module, _args, out, block=block: outputs.update({block: out.detach().clone()})
        )
    reference(x)
    messages: Messages = {}
    run_threads(run_device, 3, network, cuts, [x], messages=messages)
    for (source, target), blocks in {(0, 1): ["e2"], (0, 2): ["e1", "e2"], (1, 2): ["d3"]}.items():
        sent = messages["forward", source, target][: len(blocks)]  # the rest is the prediction
        for tensor, block in zip(sent, blocks, strict=True):
            torch.testing.assert_close(tensor, outputs[block], rtol=0, atol=0)
        assert len(messages["backward", target, source]) == len(blocks), "one gradient for each value"
    assert {key[1:] for key in messages if key[0] == "forward"} == {(0, 1), (0, 2), (1, 2)}

"""Memory of a stage: flat in the number of micro-batches, nothing kept longer than it is read."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from lampseg.parallel.pipeline import PipelineRunner
from lampseg.parallel.pipeline import runner as runner_module
from lampseg.parallel.pipeline.flight import Flight
from lampseg.parallel.pipeline.transport import Transport
from lampseg.parallel.state import hold, owners_of
from lampseg.parallel.world import World
from lampseg.partition import place, record_for
from lampseg.partition.cost import Recompute, Schedule
from tests.equivalence.one_stage import loss_of
from tests.equivalence.threads import run_threads

SHAPE = (1, 1, 64)


class Kept:
    """A tensor that autograd keeps."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def network_of(layers: int) -> nn.Module:
    return nn.Sequential(*(nn.Sequential(nn.Conv1d(1, 1, 3, padding=1), nn.Tanh()) for _ in range(layers)))


class Watch:
    """Counts what is alive, by weak references to everything made."""

    def __init__(self) -> None:
        self.made: list[weakref.ref[Any]] = []

    def alive(self, kind: type) -> list[Any]:
        return [item for item in (reference() for reference in self.made) if isinstance(item, kind)]


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """Notes every flight and every transport that the runner makes."""
    watch = Watch()

    def noting(kind: type) -> Any:
        def make(*args: Any, **kwargs: Any) -> Any:
            made = kind(*args, **kwargs)
            watch.made.append(weakref.ref(made))
            return made

        return make

    for kind in (Flight, Transport):
        monkeypatch.setattr(runner_module, kind.__name__, noting(kind))
    return watch


def most(watch: Watch, count: int, schedule: Schedule, recompute: Recompute) -> list[dict[str, int]]:
    """Of each of three stages during a step: most saved bytes; of all: most flights, posted receives, pending sends."""

    def stage(world: World) -> dict[str, int]:
        network = network_of(6)
        graph = record_for(network, shape=SHAPE, precision="float32", device="cpu")
        parts = PipelineRunner(network, place(graph, (4, 8)), world=world, schedule=schedule, recompute=recompute)
        alive: weakref.WeakSet[Kept] = weakref.WeakSet()
        found = {"bytes": 0, "flights": 0, "posted": 0, "pending": 0}

        def note(name: str, value: int) -> None:
            found[name] = max(found[name], value)

        def pack(tensor: Tensor) -> Kept:
            kept = Kept(tensor)
            alive.add(kept)
            state = {parameter.data_ptr() for parameter in network.parameters()}
            maps = {k.tensor.data_ptr(): k.tensor.nbytes for k in alive if k.tensor.data_ptr() not in state}
            note("bytes", sum(maps.values()))
            return kept

        def loss(_m: int, output: Any) -> Tensor:
            note("flights", len(watch.alive(Flight)))
            for transport in watch.alive(Transport):
                note("posted", sum(map(len, transport._posted.values())))
                note("pending", len(transport._pending))
            return loss_of(output)

        with saved_tensors_hooks(pack, lambda kept: kept.tensor):
            parts.step([SHAPE] * count, load=lambda m: torch.ones(SHAPE), loss=loss)
        return found

    return run_threads(stage, 3)


@pytest.mark.parametrize("recompute", ["none", "all"])
def test_1f1b_does_not_grow_with_the_micro_batches(recompute: Recompute, watch: Watch) -> None:
    one, four, twelve = (most(watch, count, "1f1b", recompute) for count in (1, 4, 12))
    assert four == twelve
    assert four[2]["flights"] <= 3 + 2 + 1
    times = [found["bytes"] / alone["bytes"] for found, alone in zip(four, one, strict=True)]
    assert times == ([3, 2, 1] if recompute == "none" else [1, 1, 1])


def test_gpipe_does(watch: Watch) -> None:
    four, twelve = (most(watch, count, "gpipe", "none") for count in (4, 12))
    assert twelve[0]["bytes"] == 3 * four[0]["bytes"]
    assert twelve[2]["flights"] > 2 * four[2]["flights"]
    assert twelve[2]["posted"] == four[2]["posted"], "but receives are posted no earlier"


class Concatenates(nn.Module):
    """The received value is read once, by an operation that keeps nothing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv1d(n, 1, 3, padding=1) for n in (1, 1, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        joined = torch.cat([x * 2, x], 1)
        after(self)
        return self.c(joined)


def after(network: nn.Module) -> None:
    network.check()  # type: ignore[operator]


def watch_arrivals(world: World, recompute: Recompute) -> list[bool]:
    """Whether what had arrived was gone when checked."""
    network = Concatenates()
    network.check = lambda: None  # type: ignore[assignment]
    graph = record_for(network, shape=SHAPE, precision="float32", device="cpu")
    cut = next(op.index for op in graph.operations if op.name == "cat")
    runner = PipelineRunner(network, place(graph, (cut,)), world=world, recompute=recompute)
    arrived: list[StorageWeakRef] = []
    gone: list[bool] = []

    def check() -> None:
        gone.extend(ref.expired() for ref in arrived)
        arrived.clear()

    transports = runner._transports

    def watched() -> tuple[Transport, Transport]:
        forward, backward = transports()
        take = forward.take

        def taking(key: Any, value: Any) -> list[Tensor]:
            found = take(key, value)
            arrived.extend(StorageWeakRef(tensor.untyped_storage()) for tensor in found)
            return found

        forward.take = taking  # type: ignore[method-assign]
        return forward, backward

    runner._transports = watched  # type: ignore[method-assign]
    network.check = check  # type: ignore[assignment]
    runner.step([SHAPE] * 3, load=lambda m: torch.ones(SHAPE), loss=lambda m, out: loss_of(out))
    return gone


@pytest.mark.parametrize("recompute", ["none", "all"])
def test_received_data_is_released_after_its_last_reader(recompute: Recompute) -> None:
    first, last = run_threads(watch_arrivals, 2, recompute)
    assert first == []
    assert last == [True] * 6, "two values for each of three micro-batches"


def test_other_stages_parameters_take_no_memory() -> None:
    network = network_of(3)
    total = sum(parameter.nbytes for parameter in network.parameters())
    placement = place(record_for(network, shape=SHAPE, precision="float32", device="cpu"), (2, 4))
    owners = owners_of(network, placement)
    assert set(owners.values()) == {0, 1, 2}
    hold(network, owned=[name for name, owner in owners.items() if owner == 1], device=torch.device("cpu"))
    real = [name for name, parameter in network.named_parameters() if not parameter.is_meta]
    assert real == ["1.0.weight", "1.0.bias"]
    assert sum(p.nbytes for p in network.parameters() if not p.is_meta) == total / 3

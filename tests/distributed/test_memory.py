"""Memory of a stage: flat in the number of micro-batches, nothing kept longer than it is read."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from lampseg.parallel.mesh import Mesh
from lampseg.parallel.pipeline import runner as runner_module
from lampseg.parallel.pipeline.flight import Flight
from lampseg.parallel.pipeline.transport import Delivery, Transport
from lampseg.parallel.state import hold, owners_of
from lampseg.partition import place, record_for
from lampseg.partition.plan import Recompute
from lampseg.partition.schedule import Schedule
from tests.equivalence.one_device import choices_of, loss_of, runner_of
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


CUTS: dict[Schedule, tuple[int, ...]] = {
    "gpipe": (4, 8),
    "1f1b": (4, 8),
    "interleaved": (2, 4, 6, 8, 10),
    "v": (2, 4, 6, 8, 10),
}


def most(
    watch: Watch, count: int, schedule: Schedule, recompute: Recompute, limit: int | None = None
) -> list[dict[str, int]]:
    """Of each of three devices during a step: most saved bytes; of all: most flights, arrivals, pending sends."""

    def device(mesh: Mesh) -> dict[str, int]:
        network = network_of(6)
        choices = choices_of(mesh, CUTS[schedule], schedule, recompute, limit=limit)
        runner, _ = runner_of(mesh, network, choices, shape=SHAPE)
        alive: weakref.WeakSet[Kept] = weakref.WeakSet()
        found = {"bytes": 0, "flights": 0, "arrivals": 0, "pending": 0}

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
                note("arrivals", sum(map(len, transport._arrivals.values())))
                note("pending", len(transport._pending))
            return loss_of(output)

        with saved_tensors_hooks(pack, lambda kept: kept.tensor):
            runner.step([SHAPE] * count, load=lambda m: torch.ones(SHAPE), loss=loss)
        return found

    return run_threads(device, 3)


@pytest.mark.parametrize("recompute", ["none", "all"])
def test_1f1b_does_not_grow_with_the_micro_batches(recompute: Recompute, watch: Watch) -> None:
    one, four, twelve = (most(watch, count, "1f1b", recompute) for count in (1, 4, 12))
    assert [found["bytes"] for found in four] == [found["bytes"] for found in twelve]
    for found in (*four, *twelve):
        # Read while the other threads are somewhere in their actions: not always the same.
        assert max(found["arrivals"], found["pending"]) <= 3
        assert found["flights"] <= 3 + 2 + 1
    times = [found["bytes"] / alone["bytes"] for found, alone in zip(four, one, strict=True)]
    assert times == ([3, 2, 1] if recompute == "none" else [1, 1, 1])


@pytest.mark.parametrize("schedule", ["interleaved", "v"])
@pytest.mark.parametrize("recompute", ["none", "all"])
def test_several_stages_a_device_do_not_with_a_limit(schedule: Schedule, recompute: Recompute, watch: Watch) -> None:
    eight, sixteen = (most(watch, count, schedule, recompute, limit=4) for count in (8, 16))
    for few, many in zip(eight, sixteen, strict=True):
        assert many["bytes"] == few["bytes"]
        # Read while the other threads are somewhere in their actions: not always the same.
        assert max(many["arrivals"], few["arrivals"], many["pending"], few["pending"]) <= 4
        assert many["flights"] <= 6 * 4


def test_gpipe_does(watch: Watch) -> None:
    four, twelve = (most(watch, count, "gpipe", "none") for count in (4, 12))
    assert twelve[0]["bytes"] == 3 * four[0]["bytes"]
    assert twelve[2]["flights"] > 2 * four[2]["flights"]
    assert twelve[2]["arrivals"] == four[2]["arrivals"], "but receives are posted no earlier"


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


def watch_arrivals(mesh: Mesh, recompute: Recompute) -> list[bool]:
    """Whether what had arrived was gone when checked."""
    network = Concatenates()
    network.check = lambda: None  # type: ignore[assignment]
    graph = record_for(network, shape=SHAPE, precision="float32", device="cpu")
    cut = next(op.index for op in graph.operations if op.name == "cat")
    schedule: Schedule = "1f1b" if mesh.devices == 2 else "v"
    runner, _ = runner_of(mesh, network, choices_of(mesh, (cut,), schedule, recompute), shape=SHAPE)
    arrived: list[StorageWeakRef] = []
    gone: list[bool] = []

    def check() -> None:
        gone.extend(ref.expired() for ref in arrived)
        arrived.clear()

    transport_of = runner._transport

    def watched(*args: Any) -> Transport:
        transport = transport_of(*args)
        take = transport.take

        def taking(action: Any, value: Any) -> list[Delivery]:
            found = take(action, value)
            if action.kind == "forward":
                arrived.extend(StorageWeakRef(item.data.untyped_storage()) for item in found if item.data is not None)
            return found

        transport.take = taking  # type: ignore[method-assign]
        return transport

    runner._transport = watched  # type: ignore[method-assign]
    network.check = check  # type: ignore[assignment]
    runner.step([SHAPE] * 3, load=lambda m: torch.ones(SHAPE), loss=lambda m, out: loss_of(out))
    return gone


@pytest.mark.parametrize("recompute", ["none", "all"])
def test_received_data_is_released_after_its_last_reader(recompute: Recompute) -> None:
    first, last = run_threads(watch_arrivals, 2, recompute)
    assert first == []
    assert last == [True] * 6, "two values for each of three micro-batches"


@pytest.mark.parametrize(("recompute", "gone"), [("none", [True] * 6), ("all", [True] * 6)])
def test_so_is_data_handed_over_within_a_device(recompute: Recompute, gone: list[bool]) -> None:
    (found,) = run_threads(watch_arrivals, 1, recompute)
    assert found == gone


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

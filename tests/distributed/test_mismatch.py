"""Stages that would disagree find out and say so, instead of exchanging the wrong values or waiting for ever."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from lampseg.errors import GraphMismatchError, UserError
from lampseg.parallel.mesh import Mesh, Meshes
from tests.equivalence.one_device import choices_of, loss_of, runner_of
from tests.equivalence.threads import run_threads

SHAPE = (2, 1, 8)


class Changing(nn.Module):
    """Does something else once `change` is set, as a network might that depends on more than its input's shape."""

    def __init__(self, change: str = "") -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(1, 2, 3, padding=1), nn.Conv1d(2, 2, 3, padding=1)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.change == "shape":
            x = x[:, :, ::2]
        elif self.change == "same calls":
            x = x[:, :, :]
        else:
            x = x[:, :, 0:]
        x = x.tanh() if self.change == "function" else x.relu()
        if self.change == "more":
            x = x * 2
        x = self.b(x)
        return x if self.change == "fewer" else x.sigmoid()


def steps(mesh: Mesh, network: nn.Module, cuts: Sequence[int], change: Callable[[Mesh, nn.Module], None]) -> None:
    """A step, a change, another step."""
    schedule = "1f1b" if len(cuts) + 1 == mesh.devices else "v"
    runner, _ = runner_of(mesh, network, choices_of(mesh, cuts, schedule), shape=SHAPE)
    for n in range(2):
        runner.step([SHAPE], load=lambda m: torch.ones(SHAPE), loss=lambda m, out: loss_of(out))
        if n == 0:
            change(mesh, network)


def change_to(what: str) -> Callable[[Mesh, nn.Module], None]:
    return lambda _mesh, network: setattr(network, "change", what)


@pytest.mark.parametrize(("stages", "devices"), [(1, 1), (2, 2), (3, 3), (2, 1), (4, 2)])
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("function", r"call 2 of the network is `tanh`, recorded was `relu`"),
        ("more", r"call 3 of the network is `mul`, recorded was `conv1d`"),
        ("fewer", r"made 4 calls, 5 were recorded"),
        ("shape", r"call 1 of the network, `__getitem__`, returned shapes \[\(2, 2, 4\)\], recorded were"),
    ],
)
def test_another_forward_than_recorded(stages: int, devices: int, what: str, words: str) -> None:
    cuts = {1: (), 2: (3,), 3: (3, 4), 4: (1, 3, 4)}[stages]
    with pytest.raises(GraphMismatchError, match=words):
        run_threads(steps, devices, Changing(), cuts, change_to(what))


def test_the_same_calls_with_other_values_are_no_fault() -> None:
    run_threads(steps, 2, Changing(), (3,), change_to("same calls"))


@pytest.mark.parametrize("what", ["function", "more", "shape"])
def test_networks_that_differ_between_ranks(what: str) -> None:
    def build(mesh: Mesh) -> None:
        network = Changing(what if mesh.device == 1 else "")
        steps(mesh, network, (3,), lambda _mesh, _network: None)

    with pytest.raises(GraphMismatchError, match="differs between ranks"):
        run_threads(build, 2)


def test_parameters_frozen_on_one_rank_only() -> None:
    def build(mesh: Mesh) -> None:
        network = Changing()
        network.a.requires_grad_(mesh.device == 1)
        steps(mesh, network, (3,), lambda _mesh, _network: None)

    with pytest.raises(GraphMismatchError, match="differs between ranks"):
        run_threads(build, 2)


def test_an_input_that_was_not_announced() -> None:
    def wrong(mesh: Mesh) -> None:
        network = Changing()
        runner, _ = runner_of(mesh, network, choices_of(mesh, (3,)), shape=SHAPE)
        runner.step([SHAPE], load=lambda m: torch.ones(2, 1, 9), loss=lambda m, out: loss_of(out))

    with pytest.raises(UserError, match=r"input of shape \(2, 1, 9\).*announced with \(2, 1, 8\)"):
        run_threads(wrong, 2)


def test_a_plan_for_another_number_of_processes() -> None:
    def split(mesh: Mesh) -> None:
        Meshes(mesh.world).of(replicas=2, devices=1)

    words = r"2 replica\(s\) of 1 device\(s\), so 2 process\(es\), and there are 3: plan again with --devices 3"
    with pytest.raises(UserError, match=words):
        run_threads(split, 3)


def test_more_replicas_than_micro_batches() -> None:
    mesh = Mesh(None, replicas=3, devices=2)  # type: ignore[arg-type]
    assert [list(mesh.share(8, replica)) for replica in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    with pytest.raises(UserError, match=r"3 replicas can't share 2 micro-batch\(es\): use more of them"):
        mesh.share(2, 0)

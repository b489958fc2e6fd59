"""Checkpoints: whole or absent, plain names, two kept; damaged or foreign ones are refused with what to do."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lampseg.errors import UserError
from lampseg.training import checkpoint
from lampseg.training.checkpoint import (
    by_first_name,
    check_fits,
    load_checkpoint,
    load_weights,
    optimizer_state,
    restore_optimizer,
    save_checkpoint,
    save_weights,
    step_checkpoints,
    with_all_names,
)
from tests.limits import no_space_beyond


class Shared(nn.Module):
    """One convolution registered under two names, and a BatchNorm with an integer buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv3d(1, 2, 3)
        self.second = self.first
        self.norm = nn.BatchNorm3d(2)


def named(network: nn.Module) -> dict[str, torch.Tensor]:
    return dict((*network.named_parameters(), *network.named_buffers()))


def save_step(folder: Path, step: int, network: nn.Module) -> Path:
    weights = with_all_names(network, named(network))
    numbers = {f"square_avg:{name}": torch.full_like(p, step) for name, p in network.named_parameters()}
    return save_checkpoint(folder, step=step, network=weights, optimizer=numbers, state={"best": {"step": None}})


def test_a_network_file_loads_into_the_bare_network(tmp_path: Path) -> None:
    network, other = Shared(), Shared()
    save_weights(tmp_path / "new" / "best.safetensors", with_all_names(network, named(network)), metadata={"step": "3"})
    loaded = load_weights(tmp_path / "new" / "best.safetensors")
    assert {"first.weight", "second.weight", "norm.num_batches_tracked"} <= loaded.keys()
    other.load_state_dict(loaded)
    assert all(torch.equal(a, b) for a, b in zip(network.state_dict().values(), other.state_dict().values()))
    assert by_first_name(network, loaded).keys() == named(network).keys()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["best.safetensors"]


def test_a_step_comes_back_and_two_are_kept(tmp_path: Path) -> None:
    network = Shared()
    for step in (5, 10, 100):
        assert save_step(tmp_path, step, network).name == f"step-{step:08d}"
    assert [path.name for path in step_checkpoints(tmp_path)] == ["step-00000010", "step-00000100"]
    weights, numbers, state = load_checkpoint(step_checkpoints(tmp_path)[-1])
    assert state == {"step": 100, "best": {"step": None}}
    assert torch.equal(weights["second.bias"], network.first.bias)
    assert float(numbers["square_avg:first.bias"][0]) == 100


def test_a_step_may_be_written_again(tmp_path: Path) -> None:
    network = Shared()
    save_step(tmp_path, 5, network)
    with torch.no_grad():
        network.first.bias.fill_(7)
    save_step(tmp_path, 5, network)
    assert load_checkpoint(step_checkpoints(tmp_path)[-1])[0]["first.bias"].tolist() == [7, 7]


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    network = Shared()
    save_step(tmp_path, 5, network)
    (tmp_path / ".step-00000010.tmp").mkdir()
    (tmp_path / "step-00000020").mkdir()
    assert [path.name for path in step_checkpoints(tmp_path)] == ["step-00000005"]
    assert step_checkpoints(tmp_path / "none") == []


@pytest.mark.parametrize("limit", [0, 300, 600])
def test_a_full_disk_keeps_the_checkpoint_before(limit: int, tmp_path: Path) -> None:
    network = Shared()
    save_step(tmp_path, 5, network)
    said = r"step-00000010.*cannot be written .*free space, then continue with --resume"
    with no_space_beyond(limit), pytest.raises(UserError, match=said):
        save_step(tmp_path, 10, network)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    load_checkpoint(tmp_path / "step-00000005")


def test_a_disk_that_is_full_at_the_last_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.json, "dumps", full)
    with pytest.raises(UserError, match="No space left"):
        save_step(tmp_path, 10, Shared())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_folder_that_cannot_be_made(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save_step(tmp_path / place, 1, Shared())
    with pytest.raises(UserError, match="cannot be written"):
        save_weights(tmp_path / place / "best.safetensors", {"a": torch.zeros(1)})


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("state.json", b"{", "Expecting property name"),
        ("state.json", b"[]", "lacks `step` or `best`"),
        ("state.json", b'{"step": "5", "best": {}}', "lacks `step` or `best`"),
        ("state.json", b"\xff", "codec can't decode"),
        ("network.safetensors", b"", "cannot be read as network weights"),
        ("network.safetensors", None, "cannot be read as network weights"),
        ("optimizer.safetensors", b"garbage" * 99, "cannot be read as network weights"),
        ("optimizer.safetensors", None, "cannot be read as network weights"),
    ],
)
def test_damaged_files(file: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    folder = save_step(tmp_path, 5, Shared())
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"step-00000005: not a complete checkpoint .*{message}.*; remove this folder; --re"
    ):
        load_checkpoint(folder)


def test_optimizer_numbers_of_another_network_are_refused(tmp_path: Path) -> None:
    network = Shared()
    weights = with_all_names(network, named(network))
    folder = save_checkpoint(
        tmp_path, step=1, network=weights, optimizer={"step:other.bias": torch.zeros(1)}, state={"best": {}}
    )
    with pytest.raises(UserError, match=r"holds numbers for other\.bias, the network does not"):
        load_checkpoint(folder)


def test_weights_of_another_network_are_refused_by_name_and_shape() -> None:
    network = Shared()
    weights = with_all_names(network, named(network))
    check_fits(network, weights, source="file")
    weights["third.bias"] = torch.zeros(1)
    weights["norm.bias"] = torch.zeros(5)
    del weights["first.weight"]
    with pytest.raises(UserError) as caught:
        check_fits(network, weights, source="file")
    assert str(caught.value).startswith(
        "file holds another network: `first.weight` is missing; `norm.bias` is [5], not [2]"
    )
    assert "`third.bias` is unknown" in str(caught.value)
    assert "Use the `network:` section it was made with" in str(caught.value)


def test_the_optimizer_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def step(network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        network(torch.ones(1, 1, 3, 3, 3)).square().sum().backward()
        optimizer.step()

    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        network = nn.Conv3d(1, 2, 3)
        return network, torch.optim.RMSprop(network.parameters(), lr=0.1, momentum=0.5)

    network, optimizer = build()
    step(network, optimizer)
    names = {id(p): name for name, p in network.named_parameters()}
    numbers = optimizer_state(optimizer, names)
    assert "momentum_buffer:weight" in numbers
    save_weights(tmp_path / "o.safetensors", numbers)
    other, resumed = build()
    other.load_state_dict(network.state_dict())
    restore_optimizer(resumed, dict(other.named_parameters()), load_weights(tmp_path / "o.safetensors"))
    step(network, optimizer)
    step(other, resumed)
    assert torch.equal(other.weight, network.weight)
    assert json.dumps(sorted(numbers)) == json.dumps(
        sorted(optimizer_state(resumed, {id(p): n for n, p in other.named_parameters()}))
    )

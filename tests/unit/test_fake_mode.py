"""Calls answered from memory give what PyTorch's own mode gives, for recordings and for single operators."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from benchmarks.shared.networks import SMALL
from lampseg.recording import record
from lampseg.recording.fake_mode import DryMode
from lampseg.recording.graph import Graph

SIZE = (32, 32, 48)


def recorded(name: str, monkeypatch: pytest.MonkeyPatch, *, ours: bool, size: tuple[int, ...] = SIZE) -> Graph:
    network = SMALL[name].build(size, meta=True)
    with monkeypatch.context() as patch:
        if not ours:
            patch.setitem(cast(Any, record).__globals__, "DryMode", lambda: FakeTensorMode(allow_non_fake_inputs=True))
        graph = record(network, shape=(1, 1, *size), backward=True)
    # What stands for tensors in a result has no equality.
    return replace(graph, operations=tuple(op if op.plain else replace(op, result=None) for op in graph.operations))


@pytest.mark.parametrize("name", ["basicunet", "dynunet-deep", "segresnet", "vnet", "swinunetr", "seunet"])
def test_recordings_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (64, 64, 64) if name == "swinunetr" else SIZE
    plain = recorded(name, monkeypatch, ours=False, size=size)
    first, again = (recorded(name, monkeypatch, ours=True, size=size) for _ in range(2))
    assert first == plain
    assert again == plain


def test_a_second_recording_makes_no_new_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    recorded("basicunet", monkeypatch, ours=True)
    before = DryMode.dispatched
    graph = recorded("basicunet", monkeypatch, ours=True)
    assert DryMode.dispatched - before < len(graph.operations)  # it makes ten times as many


def _views(x: Tensor) -> list[Tensor]:
    parts = x[:, 1:3].transpose(0, 1).split(1, 0)
    return [*parts, x.expand(3, *x.shape), x.detach(), x.unsqueeze(0)[0, 1]]


CALLS: dict[str, Callable[[Tensor], Any]] = {
    "views": _views,
    "several": lambda x: torch.var_mean(x, (2, 3)),
    "in place": lambda x: [(x + 1).add_(1), (x * 1)[:, 0].mul_(2)],
    "numbers that are equal": lambda x: [x * 1, x * 1.0, x.int() * 1, x.int() * 1.0, x.int() * True, x > 0],
    "dtypes": lambda x: [x.to(torch.bfloat16), x.double(), torch.zeros(3, dtype=torch.int8), x.new_ones(2)],
    "layouts": lambda x: [torch.empty_like(x.transpose(1, 2)), x.contiguous(memory_format=torch.channels_last)],
    "complex": lambda x: [torch.fft.fft(x).conj() + 1, torch.fft.fft(x).conj()],
}


@pytest.mark.parametrize("name", CALLS)
def test_single_calls_are_the_same(name: str) -> None:
    def described(mode: FakeTensorMode) -> list[Any]:
        with mode:
            x = torch.empty(2, 4, 5, 6)
            found = CALLS[name](x)
            assert all(type(t) is FakeTensor for t in found)
            own = x.untyped_storage()._cdata
            return [
                (
                    *(t.shape, t.stride(), t.storage_offset(), t.dtype, t.device, t.untyped_storage().nbytes()),
                    *(t.untyped_storage()._cdata == own, t._version, t._is_view(), t.is_conj()),
                    {name: value for name, value in t.__dict__.items() if name != "fake_mode"},
                    t.__dict__["fake_mode"] is mode,
                )
                for t in found
            ]

    plain = described(FakeTensorMode(allow_non_fake_inputs=True))
    assert described(DryMode()) == plain
    assert described(DryMode()) == plain

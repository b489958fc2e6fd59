"""Live bytes: networks counted by hand, fake tensors against real ones, and PyTorch's own record of its allocator."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from lampseg.recording.live import LiveBytes

MAP = 2 * 8 * 8 * 4  # (1, 2, 8, 8) in float32


class Small(nn.Module):
    """Convolution, ReLU: x is (1, 2, 8, 8)."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1, bias=False)
        self.inplace = inplace

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x), inplace=self.inplace)


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_convolution_and_its_backward_by_hand(fake: bool, inplace: bool) -> None:
    with FakeTensorMode() if fake else torch.device("cpu"):
        network, x = Small(inplace=inplace), torch.zeros(1, 2, 8, 8)
        live = LiveBytes()
        with live:
            loss = network(x).sum()
            # The convolution's result and the ReLU's, at once if they are two; then a scalar.
            assert live.peak == (MAP + 4 if inplace else 2 * MAP)
            assert live.current == MAP + 4, "autograd keeps the ReLU's result, not the convolution's"
            live.reset_peak()
            loss.backward()
        # What autograd kept, the gradient of the ReLU's input, and two scalars: the loss and its gradient.
        assert live.peak == 2 * MAP + 8
        assert live.current == 2 * 2 * 4 + 4, "the weight's gradient and the loss"
        del loss
        network.conv.weight.grad = None
        assert live.current == 0


@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
def test_views_are_free_and_temporaries_are_subtracted_at_once(fake: bool) -> None:
    with FakeTensorMode() if fake else torch.device("cpu"):
        x = torch.zeros(1000)
        with LiveBytes() as live:
            view = x.view(10, 100)[2:]
            same = view.contiguous()
            assert live.current == 0, "they share the memory of a tensor that was made before"
            y = (x + 1) * 2
            assert (live.current, live.peak) == (4000, 8000)
            part = y[:10]
            del y
            assert live.current == 4000, "a view keeps all the memory"
            y = x.new_ones(500, dtype=torch.float64)
            del part
            assert (live.current, live.peak) == (4000, 8000)
            y.add_(1).mul_(2)
            torch.mul(y, 2, out=y)
            assert live.peak == 8000
            live.reset_peak()
            assert live.peak == 4000
        del y
        assert live.current == 0
        live.add(x)
        live.add(view)
        assert (live.current, live.peak) == (4000, 4000)
        del x, view, same
        assert live.current == 0


def test_resized_storages_count_with_their_new_size() -> None:
    resize = torch.UntypedStorage.resize_
    with LiveBytes() as live:
        x = torch.zeros(100)
        x.resize_(300)
        assert (live.current, live.peak) == (1200, 1200)
        x.untyped_storage().resize_(0)  # as FSDP does
        assert live.current == 0
        x.untyped_storage().resize_(800)
        assert (live.current, live.peak) == (800, 1200)
    assert torch.UntypedStorage.resize_ is resize, "what was put in its place is taken out again"
    del x
    assert live.current == 0


class Sum(nn.Module):
    """A value that three operations read: its gradients add up."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8, 1000))

    def forward(self, x: Tensor) -> Tensor:
        h = x * self.weight
        return h.sigmoid() + h.exp() + h.tanh()


class Perceptron(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(1000, 64), nn.LayerNorm(64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 16))


class Convolutions(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(
            nn.Conv3d(1, 4, 3, padding=1),
            nn.InstanceNorm3d(4, affine=True),
            nn.LeakyReLU(inplace=True),
            nn.Conv3d(4, 4, 3, padding=1, stride=2),
            nn.BatchNorm3d(4),
            nn.ReLU(),
            nn.ConvTranspose3d(4, 2, 2, 2),
            nn.MaxPool3d(2),
        )


class _Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


def allocator_peaks(network: nn.Module, x: Tensor, path: Path) -> tuple[int, int]:
    """Peaks of what the CPU's allocator gave out, by torch.profiler: with and without what kernels use inside.

    Without means: without memory that was taken and given back during one and the same kernel.
    """
    with _Names() as kernels:
        network(x).mean().backward()
    network.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        network(x).mean().backward()
    network.zero_grad()
    profiler.export_chrome_trace(str(path))
    events = json.loads(path.read_text())["traceEvents"]
    memory = sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"])
    spans = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] in kernels.names and e.get("cat") == "cpu_op"]
    born: dict[int, int] = {}
    inside: set[int] = set()
    for n, event in enumerate(memory):
        if event["args"]["Bytes"] > 0:
            born[event["args"]["Addr"]] = n
        elif event["args"]["Addr"] in born:
            first = born.pop(event["args"]["Addr"])
            if any(begin <= memory[first]["ts"] and event["ts"] <= end for begin, end in spans):
                inside |= {first, n}
    peaks = []
    for left_out in (set(), inside):
        now = peak = 0
        for n, event in enumerate(memory):
            now += 0 if n in left_out else event["args"]["Bytes"]
            peak = max(peak, now)
        peaks.append(peak)
    return peaks[0], peaks[1]


@pytest.mark.parametrize(
    ("network", "shape"),
    [(Sum(), (8, 1000)), (Perceptron(), (50, 1000)), (Convolutions(), (1, 1, 16, 16, 16))],
    ids=["sum", "perceptron", "convolutions"],
)
def test_equals_what_the_allocator_gave_out(network: nn.Module, shape: tuple[int, ...], tmp_path: Path) -> None:
    """The difference is what kernels take and give back inside, such as the columns of PyTorch's CPU convolution.

    The sum is a trap: autograd writes the sum of two gradients into the first, but makes a new tensor under a mode.
    """
    x = torch.randn(shape)
    everything, tensors = allocator_peaks(network, x, tmp_path / "trace.json")
    with LiveBytes() as live:
        network(x).mean().backward()
    assert live.peak == tensors
    if isinstance(network, Convolutions):
        columns = 16**3 * 4 * 27 // 8 * 4 * 2  # 4 channels x 27 taps, half the size each way; both ways at once
        assert tensors < everything <= tensors + columns
    else:
        assert tensors == everything

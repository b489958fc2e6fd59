"""Calibration on a GPU. Skipped without CUDA."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lampseg.hardware.device import hardware_for
from lampseg.recording.kernel import Kernel

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.timeout(300)
def test_calibration_finds_possible_speeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The events must time the kernels themselves: without them a call seems to take no time at all."""
    path = tmp_path / "hardware.json"
    monkeypatch.setenv("LAMPSEG_HARDWARE", str(path))
    command = [sys.executable, "-m", "lampseg", "calibrate", "--devices", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    hardware = hardware_for(kind="cuda")
    assert hardware.source.startswith("measured on")
    assert hardware.memory == torch.cuda.get_device_properties(0).total_memory
    assert set(hardware.rates) == {"float32", "bfloat16"}
    dense = Kernel("convolution", "convolution", 1e12, 10**9, (64, 64), 10**7, 27)
    assert 1e12 < dense.flops / hardware.seconds(dense, "bfloat16") < 5e15
    moved = Kernel("relu", "pointwise", 0.0, 10**9)
    assert 5e10 < moved.nbytes / hardware.seconds(moved) < 2e13

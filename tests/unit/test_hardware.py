"""Presets, the calibration file, and how a device is found."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lampseg.errors import UserError
from lampseg.hardware.calibration_file import (
    Calibration,
    calibration_path,
    read_calibration,
    read_calibrations,
    write_calibration,
)
from lampseg.hardware.device import Hardware, device_name, hardware_for, threads_of_each
from lampseg.hardware.presets import CARDS, cpu_core, generic_card, preset
from lampseg.parallel.links import fit_line
from lampseg.recording.kernel import Kernel

GIB = 1024.0**3
DENSE = Kernel("convolution", "convolution", 1e12, 10**9, (64, 64), 10**7, 27)
MOVED = Kernel("relu", "pointwise", 0.0, 10**9)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this test's calibration lies."""
    path = tmp_path / "cache" / "hardware.json"
    monkeypatch.setenv("LAMPSEG_HARDWARE", str(path))
    return path


def measured(processes: int = 1, *, kind: str = "cpu", name: str | None = None) -> Calibration:
    made = cpu_core(1) if kind == "cpu" else preset("a100", kind="cuda")
    name = name or device_name("cpu") or ""
    hardware = replace(made, name=name, processes=processes, threads=threads_of_each(kind, processes))
    return Calibration(hardware, "2026-01-02T03:04:05+00:00", "2.13.0")


@pytest.mark.parametrize("name", ["cpu", *CARDS])
def test_presets_are_whole(name: str) -> None:
    hardware = preset(name, kind="cpu" if name == "cpu" else "cuda")
    assert hardware.fault() is None
    assert "not measured" in hardware.source
    for precision in hardware.rates:
        for backward in (False, True):
            assert 0 < hardware.seconds(replace(DENSE, backward=backward), precision) < 1e3
            assert 0 < hardware.seconds(replace(MOVED, backward=backward), precision) < 1e3
    assert hardware.optimizer_seconds(1e6) > 0


@pytest.mark.parametrize("name", CARDS)
def test_presets_stay_below_what_the_maker_promises(name: str) -> None:
    card, hardware = CARDS[name], preset(name, kind="cuda")
    for precision, peak in card.flops.items():
        assert DENSE.flops / hardware.seconds(DENSE, precision) < peak
    assert MOVED.nbytes / hardware.seconds(MOVED) < card.bytes_per_second
    assert 1e9 / hardware.transfer_seconds(1e9) < card.link


def test_presets_are_ordered_as_the_cards_are() -> None:
    """A newer or lower precision is not slower."""
    names = ["v100-32", "a100-40", "a100-80", "h100", "h200"]
    for kernel in (DENSE, MOVED):
        times = [preset(name, kind="cuda").seconds(kernel, "bfloat16") for name in names]
        assert times == sorted(times, reverse=True)
    for name in CARDS:
        times = [
            preset(name, kind="cuda").seconds(DENSE, precision) for precision in ("float64", "float32", "bfloat16")
        ]
        assert times == sorted(times, reverse=True)


@pytest.mark.parametrize(
    ("size", "like"), [("16GiB", "16GiB"), ("20GiB", "16GiB"), ("24 GB", "24GiB"), ("96GiB", "80GiB")]
)
def test_a_size_means_a_generic_card_with_just_that_memory(size: str, like: str) -> None:
    hardware = hardware_for(kind="cuda", name=size)
    assert hardware.name == CARDS[like].title
    expected = {"16GiB": 16 * GIB, "20GiB": 20 * GIB, "24 GB": 24e9, "96GiB": 96 * GIB}[size]
    assert hardware.memory == expected


def test_a_size_on_the_cpu_is_this_cpu_with_so_much_memory(here: Path) -> None:
    hardware = hardware_for(kind="cpu", name="24GiB")
    assert (hardware.kind, hardware.memory) == ("cpu", 24 * GIB)


def test_names_are_forgiving_and_unknown_ones_are_listed(here: Path) -> None:
    assert hardware_for(kind="cuda", name="H100") == preset("h100", kind="cuda")
    assert hardware_for(kind="cuda", name="a100").memory == 80 * GIB
    with pytest.raises(UserError, match=r"`b200` is not known; name one of cpu, v100-16"):
        hardware_for(kind="cuda", name="b200")
    with pytest.raises(UserError, match="planned for the CPU"):
        hardware_for(kind="cpu", name="h100")
    with pytest.raises(UserError, match="no CUDA device"):
        hardware_for(kind="cuda", name="cpu")


def test_costs_that_are_no_kernels() -> None:
    hardware = generic_card(16 * GIB)
    assert hardware.transfer_seconds(0) == hardware.link.latency
    assert hardware.all_reduce_seconds(1e9, 1) == 0
    # Each of 4 ranks sends 6 quarters of the data.
    expected = 6 * (hardware.link.reduce_latency + 1e9 / 4 / hardware.link.reduce_bytes_per_second)
    assert hardware.all_reduce_seconds(1e9, 4) == pytest.approx(expected)
    assert hardware.optimizer_seconds(2e6) == pytest.approx(2 * hardware.optimizer_seconds(1e6))


def test_a_precision_that_was_not_measured_counts_as_float32() -> None:
    hardware = cpu_core(1)
    once = hardware.seconds(MOVED)
    assert hardware.seconds(MOVED, "bfloat16") == once
    assert hardware.seconds(MOVED, "float64") == 2 * once


def test_round_trip_through_the_file(here: Path) -> None:
    write_calibration(measured(), here)
    assert read_calibrations(here) == (measured(),)
    hardware = hardware_for(kind="cpu")
    assert replace(hardware, source=measured().hardware.source) == measured().hardware
    assert "measured on 2026-01-02" in hardware.source
    assert str(here) in hardware.source


def test_a_calibration_from_before_kernels_were_asynchronous_stays_as_it_was(here: Path) -> None:
    """Its rates were made to be added to the overhead; they give the measured times back only so."""
    made = measured(kind="cuda", name="a card")
    assert made.hardware.rates["float32"].asynchronous
    write_calibration(made, here)
    assert read_calibrations(here) == (made,)
    content = json.loads(here.read_text())
    for rates in content["calibrations"][0]["hardware"]["rates"].values():
        del rates["asynchronous"]
    here.write_text(json.dumps(content))
    (older,) = read_calibrations(here)
    assert not older.hardware.rates["float32"].asynchronous
    gained = older.hardware.seconds(MOVED) - made.hardware.seconds(MOVED)
    assert gained == pytest.approx(made.hardware.rates["float32"].overhead)


def test_a_calibration_must_fit_the_run(here: Path) -> None:
    """Another number of processes shares memory and cores in another way, so that its figures would mislead."""
    write_calibration(measured(2), here)
    assert "measured" in hardware_for(kind="cpu", processes=2).source.split()[0]
    assert "preset" in hardware_for(kind="cpu", processes=1).source
    write_calibration(measured(1, name="another processor"), here)
    assert "preset" in hardware_for(kind="cpu", processes=1).source


def test_a_new_entry_replaces_its_like_and_keeps_other_precisions(here: Path) -> None:
    first, second = measured(), measured(2)
    both = {"float32": first.hardware.rates["float32"], "bfloat16": first.hardware.rates["float32"]}
    write_calibration(replace(first, hardware=replace(first.hardware, rates=both)), here)
    write_calibration(second, here)
    faster = replace(first.hardware.rates["float32"], overhead=1e-9)
    write_calibration(replace(first, hardware=replace(first.hardware, rates={"float32": faster})), here)
    entries = {entry.hardware.processes: entry.hardware for entry in read_calibrations(here)}
    assert len(read_calibrations(here)) == 2
    assert entries[1].rates == {**both, "float32": faster}
    assert entries[2] == second.hardware


def test_a_named_file_serves_the_nearest_number_of_processes(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    write_calibration(measured(2, name="elsewhere"), path)
    write_calibration(measured(8, name="elsewhere"), path)
    assert hardware_for(kind="cpu", name=str(path), processes=6).processes == 8
    with pytest.raises(UserError, match="no calibration of a cuda device"):
        read_calibration(path, kind="cuda", processes=1)


def test_of_a_named_file_this_machine_takes_its_own_entries(tmp_path: Path) -> None:
    """A benchmark's file had gone from machine to machine: plans were made with the first one's figures."""
    path = tmp_path / "shared.json"
    write_calibration(measured(2, name="elsewhere"), path)
    write_calibration(measured(4), path)
    assert hardware_for(kind="cpu", name=str(path), processes=2).name == device_name("cpu")


def broken(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "hardware.json"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ('{"version": 7}', "of version 7, not 1"),
        ("[]", "is not a calibration"),
        ('{"version": 1, "calibrations": [{"date": "today"}]}', "is not a calibration"),
        ('{"loss": 0.5}', "is not a calibration"),
    ],
)
def test_foreign_files_are_refused_with_a_remedy(tmp_path: Path, text: str, message: str) -> None:
    path = broken(tmp_path, text)
    with pytest.raises(UserError, match=message) as caught:
        read_calibrations(path)
    assert str(path) in str(caught.value)
    assert "calibrate again with `lampseg calibrate --out" in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda h: h["rates"].pop("float32"), "no rates for float32"),
        (
            lambda h: (
                h["rates"]["float32"]["dense"].pop("convolution/direct/forward")
                and h["rates"]["float32"]["dense"].pop("convolution/fallback/forward")
            ),
            "no rates for convolution, forward",
        ),
        (lambda h: h["rates"]["float32"]["moved"].pop("in_place"), "no bandwidth for in_place"),
        (lambda h: h["rates"]["float32"]["moved"]["pointwise"].update(values=[0.0]), "pointwise is not whole"),
        (lambda h: h["rates"]["float32"]["moved"]["pointwise"].update(values=[]), "pointwise is not whole"),
        (lambda h: h["link"].update(bytes_per_second=0.0), "figure of the link"),
    ],
)
def test_impossible_figures_are_refused(tmp_path: Path, change, message: str) -> None:
    """They would end in a division by zero in the middle of a plan."""
    path = tmp_path / "hardware.json"
    write_calibration(measured(), path)
    content = json.loads(path.read_text())
    change(content["calibrations"][0]["hardware"])
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_calibrations(path)


def test_missing_and_unwritable_files(tmp_path: Path, here: Path) -> None:
    with pytest.raises(UserError, match="can't be read as a calibration"):
        hardware_for(kind="cpu", name=str(tmp_path / "none.json"))
    assert "preset" in hardware_for(kind="cpu").source  # none is stored: no error
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="give another place with --out"):
        write_calibration(measured(), tmp_path / "file" / "hardware.json")


def test_where_the_calibration_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LAMPSEG_HARDWARE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert calibration_path() == tmp_path / "lampseg" / "hardware.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert calibration_path() == tmp_path / ".cache" / "lampseg" / "hardware.json"


def test_a_line_through_messages() -> None:
    sizes = [1e3, 1e5, 1e7]
    latency, bandwidth = fit_line(sizes, [1e-4 + size / 1e9 for size in sizes])
    assert latency == pytest.approx(1e-4)
    assert bandwidth == pytest.approx(1e9)
    latency, bandwidth = fit_line(sizes, [2e-3, 1e-3, 5e-4])  # nonsense from a busy machine
    assert latency >= 0
    assert 0 < bandwidth < float("inf")


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="one path only")
def test_workspace_of_the_slow_path_is_its_unfolded_input() -> None:
    hardware: Hardware = cpu_core(1)
    slow = Kernel("convolution", "convolution", 1.0, 10**6, (8, 8), 1000, 27, False, True)
    assert hardware.workspace_bytes(slow) == 8 * 27 * 1000 * 4
    assert hardware.workspace_bytes(replace(slow, taps=1)) == 0
    assert hardware.workspace_bytes(MOVED) == 0
    assert preset("h100", kind="cuda").workspace_bytes(slow) == slow.nbytes


@pytest.mark.parametrize(
    ("inputs", "outputs", "side", "forward", "backward"),
    [(8, 8, 64, 16, 24), (16, 16, 64, 16, 32), (16, 32, 64, 32, 48), (32, 8, 64, 40, 48), (4, 10, 96, 54, 94.5)],
)
def test_workspace_with_onednn(inputs: int, outputs: int, side: int, forward: float, backward: float) -> None:
    """The figures (MiB) are what PyTorch's memory profiler shows for such calls beside their results (torch 2.13)."""
    voxels, weight = side**3, 27 * inputs * outputs
    x, y, w = 4 * voxels * inputs, 4 * voxels * outputs, 4 * weight
    call = Kernel("convolution", "convolution", 1.0, x + y + w, (inputs, outputs), voxels, 27)
    back = replace(call, name="convolution_backward", nbytes=2 * x + y + 2 * w, backward=True)
    hardware = cpu_core(1)
    assert hardware.workspace_bytes(call) / 2**20 == pytest.approx(forward, rel=0.01)
    assert hardware.workspace_bytes(back) / 2**20 == pytest.approx(backward, rel=0.01)

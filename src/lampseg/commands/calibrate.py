"""`calibrate`: measures this machine once, as `train` will use it, and stores what it found."""

import datetime
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lampseg.errors import UserError
from lampseg.hardware.calibration_file import Calibration, calibration_path, read_calibrations, write_calibration
from lampseg.hardware.device import ITEMSIZES, Hardware, Precision, device_name
from lampseg.hardware.machine import threads_per_process
from lampseg.hardware.measure import DTYPES, Small, Timed, fit, time_sample, time_small
from lampseg.hardware.presets import CARD_RESERVE, local_preset
from lampseg.hardware.rates import Rates
from lampseg.hardware.samples import samples
from lampseg.parallel.devices import parse_devices
from lampseg.parallel.launch import is_worker, launch
from lampseg.parallel.links import measure_link
from lampseg.parallel.world import World, membership

TIMEOUT = 300.0
"""Seconds that a process waits for the others."""


def calibrate(
    *, devices: str | None = None, precisions: Sequence[str] = (), out: Path | None = None, quick: bool = False
) -> Path:
    """Times kernels on as many processes as `train` would start, all at once, and the messages between them.

    Args:
        devices: as in `train`.
        precisions: float32, bfloat16, float64; without any float32, on CUDA bfloat16 as well. float32 is always
            measured: the others fall back on it.
        out: the file; None is where plans look for it.
        quick: tiny sizes and few points, for tests: the figures are not to be trusted.

    Returns:
        The file, to which the entry was added.

    Raises:
        UserError: unknown devices or precisions, or a file that can't be read or written.
        WorkerError: a process failed.
    """
    found = parse_devices(devices)
    kind: Literal["cpu", "cuda"] = "cuda" if found.kind == "cuda" else "cpu"
    chosen = _precisions(precisions, kind=kind)
    path = (out or calibration_path()).absolute()
    if path.exists():
        read_calibrations(path)  # refused before anything is measured
    if is_worker() or found.count == 1:
        if kind == "cpu" and not is_worker() and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(threads_per_process(1))
        _work(kind=kind, precisions=chosen, path=path, quick=quick)
        return path
    arguments = ["calibrate", "--devices", str(found.count), "--precision", *chosen, "--out", str(path)]
    launch([*arguments, *(["--quick"] if quick else [])], processes=found.count)
    return path


def _precisions(names: Sequence[str], *, kind: str) -> list[Precision]:
    for name in names:
        if name not in DTYPES:
            raise UserError(f"--precision: `{name}` is none of {', '.join(get_args(Precision))}")
    wanted = {"float32", *names} if names or kind == "cpu" else {"float32", "bfloat16"}
    return [precision for precision in get_args(Precision) if precision in wanted]


def _work(*, kind: Literal["cpu", "cuda"], precisions: Sequence[Precision], path: Path, quick: bool) -> None:
    """One of the processes."""
    begun = time.monotonic()
    with membership(device=kind, timeout=TIMEOUT) as world:
        console = Console(quiet=not world.first)
        console.print(f"calibrating {device_name(kind)}: {world.size} process(es), {torch.get_num_threads()} thread(s)")
        rates = {precision: _measure(world, precision, console=console, quick=quick) for precision in precisions}
        hardware = _hardware(world, kind=kind, rates=rates, quick=quick)
        if world.first:
            date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            write_calibration(Calibration(hardware, date, torch.__version__), path)
            for precision in precisions:
                console.print(_table(hardware, precision))
            console.print(_link_line(hardware), highlight=False)
            took = time.monotonic() - begun
            console.print(f"stored in {path} after {took:.0f} s", highlight=False, markup=False, soft_wrap=True)


def _measure(world: World, precision: Precision, *, console: Console, quick: bool) -> Rates:
    """All processes time the same call at the same time, so that they share memory and cores as in training."""
    listed = list(samples(kind=world.device.type, precision=precision, quick=quick))
    timed: list[Timed] = []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(precision, total=len(listed))
        for sample in listed:
            progress.update(bar, description=f"{precision}: {sample.title}")
            dist.barrier(group=world.control)
            timed += time_sample(sample, device=world.device, dtype=DTYPES[precision], quick=quick)
            progress.advance(bar)
    dist.barrier(group=world.control)
    small = time_small(device=world.device, quick=quick)
    means = _means(world, [t.seconds for t in timed])
    overhead, backward_overhead, optimizer = _means(
        world, [small.overhead, small.backward_overhead, small.optimizer_seconds_per_byte]
    )
    shared = [replace(t, seconds=mean) for t, mean in zip(timed, means)]
    small = Small(overhead, backward_overhead, optimizer)
    return fit(shared, small, itemsize=ITEMSIZES[precision], asynchronous=world.device.type == "cuda")


def _means(world: World, numbers: list[float]) -> list[float]:
    everyone: list[Any] = world.gather(numbers)
    return [sum(values) / len(values) for values in zip(*everyone)]


def _hardware(world: World, *, kind: Literal["cpu", "cuda"], rates: dict[Precision, Rates], quick: bool) -> Hardware:
    name = device_name(kind)
    assert name is not None
    threads = torch.get_num_threads() if kind == "cpu" else 1
    stated = local_preset(kind, device=name, threads=threads)
    memory = None
    if kind == "cuda":
        memory = float(torch.cuda.get_device_properties(world.device).total_memory)
    return Hardware(
        name=name,
        kind=kind,
        source="measured",
        processes=world.size,
        threads=threads,
        memory=memory,
        reserve_bytes=CARD_RESERVE if kind == "cuda" else 0.0,
        link=measure_link(world, quick=quick) if world.size > 1 else stated.link,
        rates=rates,
    )


def _table(hardware: Hardware, precision: Precision) -> Table:
    """The achieved rates of one precision, at a few points."""
    table = Table(title=f"{hardware.name}, {precision}", title_justify="left")
    table.add_column("kind")
    table.add_column("forward", justify="right")
    table.add_column("backward", justify="right")
    rates = hardware.rates[precision]
    families = sorted({tuple(key.split("/")[:2]) for key in rates.dense if not key.startswith("matmul")})
    for kind, path in families:
        for channels in (1, 8, 32):
            row = [f"{kind.replace('_', ' ')}, {channels} to {max(channels, 8)} channels"]
            row[0] += ", slow path" if path == "fallback" else ""
            for direction in ("forward", "backward"):
                dense = rates.dense.get(f"{kind}/{path}/{direction}")
                row.append(_rate(dense.surface.at(channels, max(channels, 8)), "FLOP/s") if dense else "-")
            table.add_row(*row)
    table.add_row(
        "matrix product of 512", _rate(rates.dense["matmul/direct/forward"].surface.at(512, 512), "FLOP/s"), ""
    )
    for key in ("norm", "pool", "resample"):
        speeds = [rates.moved[f"{key}/{direction}"].at(1e7) for direction in ("forward", "backward")]
        table.add_row(f"{key}, 10 MB", *(_rate(speed, "B/s") for speed in speeds))
    for size in (1e6, 1e7, 1e8):
        table.add_row(f"pointwise, {size / 1e6:.0f} MB", _rate(rates.moved["pointwise"].at(size), "B/s"), "")
    table.add_row("overhead of a call", f"{rates.overhead * 1e6:.1f} us", f"{rates.backward_overhead * 1e6:.1f} us")
    return table


def _link_line(hardware: Hardware) -> str:
    link = hardware.link
    stated = " (stated, not measured: there was one process)" if hardware.processes == 1 else ""
    return (
        f"messages between processes: {link.latency * 1e6:.0f} us + {_rate(link.bytes_per_second, 'B/s')}; "
        f"sum over all, each round: {link.reduce_latency * 1e6:.0f} us + {_rate(link.reduce_bytes_per_second, 'B/s')}"
        f"{stated}"
    )


def _rate(value: float, unit: str) -> str:
    for prefix, power in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if value >= power:
            return f"{value / power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}"

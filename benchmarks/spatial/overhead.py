"""What slabs compute and move beside their share: one rank of K against the whole, messages left out.

    python -m benchmarks.spatial.overhead [--out DIR] [--quick]

With instance norm the whole has copies that slabs spare: PyTorch's instance norm returns a view, and autograd copies
the gradients of what an activation overwrites in place. With batch norm it has none: the stricter comparison.

Counted on fake tensors; where there is a GPU, measured on it as well: one rank's slab alone, whose halos come from
nowhere.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.shared.results import circumstances, median, options, write
from lampseg.hardware.device import Hardware, hardware_for
from lampseg.hardware.rates import moved_bytes
from lampseg.networks import UNet, on_meta
from lampseg.parallel.fake_state import fake_state
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.partition.costed import record_for
from lampseg.partition.placement import place
from lampseg.recording.backward import EmptyLoss
from lampseg.recording.kernel import Kernel
from lampseg.recording.tally import tally

SIZE = (352, 256, 288)
FILTERS = (32, 64, 128)
NORMS = ("instance", "batch")
RANKS = (2, 4, 8)
PRECISION = "bfloat16"
HARDWARE = "h100"
ROUNDS = 5
COLUMNS = ("FLOPs", "bytes", "time", "queue")
SHORTEST = 2e-6
"""Seconds of the smallest kernel on the device."""


@dataclass(frozen=True)
class Work:
    """A network and a volume."""

    filters: int
    size: tuple[int, int, int]
    norm: str = "instance"
    depth: int = 4

    @property
    def shape(self) -> tuple[int, ...]:
        return (1, 1, *self.size)

    @property
    def stride(self) -> int:
        return 2**self.depth

    def build(self) -> nn.Module:
        return UNet(filters=self.filters, depth=self.depth, norm=self.norm, stem_stride=1).train()

    def slabs(self, ranks: int, place_: int) -> SpatialParallel:
        """Along X."""
        return SpatialParallel.rehearsal({"x": ranks}, {"x": 2}, place={"x": place_}, stride=self.stride, device="cuda")


def places_of(ranks: int) -> dict[str, int]:
    """Which ranks are looked at."""
    return {"first": 0, **({"inner": ranks // 2 - 1} if ranks > 2 else {}), "last": ranks - 1}


def forward(network: nn.Module, spatial: SpatialParallel, x: Tensor) -> Any:
    """Of a rank's slab; where there is one rank only, of the whole."""
    with spatial, torch.autocast(x.device.type, torch.bfloat16, enabled=PRECISION == "bfloat16"):
        return network(x)


def local(work: Work, spatial: SpatialParallel) -> tuple[int, ...]:
    """The shape of the rank's slab."""
    spatial.begin()
    sizes = list(work.shape)
    for shard in spatial.layout(work.shape):
        sizes[shard.dim] = spatial.local(shard)
    return tuple(sizes)


def counted(work: Work, network: nn.Module, fake: Any, spatial: SpatialParallel) -> list[Kernel]:
    """The kernels of a forward and a backward."""
    shape = local(work, spatial)

    def run(inputs: list[Tensor]) -> Tensor:
        output = forward(network, spatial, spatial.slab(inputs.pop(), spatial.layout(work.shape)))
        with torch._C.DisableTorchFunction():
            return EmptyLoss.of(output)

    found = tally(lambda: [torch.empty(shape)], run, mode=fake.mode)
    return [*found.forward, *found.backward]


def figures(kernels: list[Kernel], hardware: Hardware) -> tuple[float, ...]:
    """FLOPs, bytes and seconds: as the planner adds them up, and of the queue."""
    return (
        sum(kernel.flops for kernel in kernels),
        sum(moved_bytes(kernel) for kernel in kernels),
        sum(hardware.seconds(kernel, precision=PRECISION) for kernel in kernels),  # type: ignore[arg-type]
        queued(kernels, hardware),
    )


def queued(kernels: list[Kernel], hardware: Hardware) -> float:
    """Seconds until the device has worked off what the host starts: one call after the other, without waiting.

    To the planner each kernel takes no less than its start. That is too much where large kernels come first: while the
    device works on them, the host starts many small ones.
    """
    rates = hardware.rates[PRECISION]  # type: ignore[index]
    quick = replace(rates, overhead=SHORTEST, backward_overhead=SHORTEST)
    alone = replace(hardware, rates={PRECISION: quick})  # type: ignore[dict-item]
    host = device = 0.0
    for kernel in kernels:
        host += rates.backward_overhead if kernel.backward else rates.overhead
        device = max(device, host) + alone.seconds(kernel, precision=PRECISION)  # type: ignore[arg-type]
    return device


def on_paper(work: Work, ranks: tuple[int, ...]) -> list[dict[str, Any]]:
    """For each rank looked at: what it takes for each plane that it owns, over what the whole takes for each."""
    hardware = hardware_for(kind="cuda", name=HARDWARE)
    network = on_meta(work.build)
    graph = record_for(network, shape=work.shape, precision=PRECISION, device="cpu", gradients=True)
    found = []
    with fake_state(network) as fake:

        def one(count: int, where: int) -> tuple[int, tuple[float, ...]]:
            fake.hold(place(graph, ()), 0, gradients=False)
            spatial = work.slabs(count, where)
            return local(work, spatial)[2], figures(counted(work, network, fake, spatial), hardware)

        _, whole = one(1, 0)
        for count in ranks:
            for name, where in places_of(count).items():
                planes, mine = one(count, where)
                share = planes / work.size[0]
                found.append(
                    {
                        "norm": work.norm,
                        "filters": work.filters,
                        "ranks": count,
                        "rank": name,
                        "planes": planes,
                        "times_ranks": [n * count / total for n, total in zip(mine, whole, strict=True)],
                        "by_plane": [n / share / total for n, total in zip(mine, whole, strict=True)],
                    }
                )
    return found


def on_gpu(work: Work, ranks: tuple[int, ...]) -> list[dict[str, Any]]:
    """Seconds of a step of each rank looked at and of the whole, in turn; what does not fit is left out."""
    device = torch.device("cuda")
    network = work.build().to(device)
    ways = {(1, "whole"): work.slabs(1, 0)}
    ways |= {(count, name): work.slabs(count, at) for count in ranks for name, at in places_of(count).items()}
    seconds: dict[tuple[int, str], list[float]] = {way: [] for way in ways}
    for turn in range(ROUNDS + 1):
        for way, spatial in ways.items():
            try:
                took = _step(work, network, spatial, device)
            except torch.OutOfMemoryError:
                continue
            if turn:
                seconds[way].append(took)
    whole = median(seconds[1, "whole"]) if seconds[1, "whole"] else None
    found = []
    for (count, name), taken in seconds.items():
        if taken:
            planes = local(work, ways[count, name])[2]
            here = median(taken)
            share = planes / work.size[0]
            found.append(
                {"norm": work.norm, "filters": work.filters, "ranks": count, "rank": name, "planes": planes}
                | {"seconds": here}
                | {"by_plane": None if whole is None else here / share / whole}
            )
    return found


def _step(work: Work, network: nn.Module, spatial: SpatialParallel, device: torch.device) -> float:
    x = torch.rand(local(work, spatial), device=device)
    layout = spatial.layout(work.shape)
    network.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    begun = time.perf_counter()
    output = forward(network, spatial, spatial.slab(x, layout))
    with torch._C.DisableTorchFunction():
        EmptyLoss.of(output).backward()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


def record(out: Path, *, quick: bool, at: dict[str, Any]) -> None:
    """Writes overhead.md and overhead.json."""
    works = [Work(filters, SIZE, norm) for norm in NORMS for filters in FILTERS]
    if quick:
        works = [Work(4, (64, 16, 16), norm, depth=2) for norm in NORMS]
    ranks = RANKS[:1] if quick else RANKS
    paper = [row for work in works for row in on_paper(work, ranks)]
    size = "x".join(map(str, works[0].size))
    summary = [f"on paper, {size}, {PRECISION}, messages left out; time on {HARDWARE} as the planner has it (aim: 5 %)"]
    for norm in dict.fromkeys(work.norm for work in works):
        rows_of = [row for row in paper if row["norm"] == norm]
        worst = {name: max(row["by_plane"][n] for row in rows_of) - 1 for n, name in enumerate(COLUMNS)}
        reached = [sum(row["by_plane"][n] <= 1.05 for row in rows_of) for n in (2, 3)]
        summary.append(
            f"{norm} norm: for each plane that it owns, a rank computes at most {worst['FLOPs']:+.1%} FLOPs, moves "
            f"{worst['bytes']:+.1%} bytes and takes {worst['time']:+.1%} of the time of the whole ({reached[0]} of "
            f"{len(rows_of)} ranks reach the aim); {worst['queue']:+.1%} where the host starts kernels ahead of the "
            f"device ({reached[1]} of {len(rows_of)})"
        )
    columns = ["norm", "filters", "K", "rank", "planes", *(f"{name}, x K" for name in COLUMNS)]
    columns += [f"{name}, by plane" for name in COLUMNS]
    rows = [
        [
            *(str(row[key]) for key in ("norm", "filters", "ranks", "rank", "planes")),
            *(f"{value:.3f}" for key in ("times_ranks", "by_plane") for value in row[key]),
        ]
        for row in paper
    ]
    tables = [(f"Of one rank, over those of the whole ({size})", columns, rows)]
    gpu: list[dict[str, Any]] = []
    if torch.cuda.is_available():
        gpu = [row for work in works for row in on_gpu(work, ranks)]
        over = [row["by_plane"] for row in gpu if row["ranks"] > 1 and row["by_plane"] is not None]
        if over:
            summary.append(
                f"on {torch.cuda.get_device_name()}: at most {max(over) - 1:+.1%} of the time by plane (aim: 5 %)"
            )
        rows = [
            [
                *(str(row[key]) for key in ("norm", "filters", "ranks", "rank", "planes")),
                f"{row['seconds']:.3f}",
                "-" if row["by_plane"] is None else f"{row['by_plane']:.3f}",
            ]
            for row in gpu
        ]
        head = ["norm", "filters", "K", "rank", "planes", "seconds", "by plane"]
        tables.append((f"Measured on {torch.cuda.get_device_name()}, without communication", head, rows))
    else:
        summary.append("on a GPU: not measured, there is none here")
    write(
        out,
        "overhead",
        title="What one of K slabs computes beside its share",
        summary=summary,
        tables=tables,
        data={"paper": paper, "gpu": gpu},
        at=at,
    )


def main() -> None:
    chosen = options(Path(__file__).parent, description=__doc__ or "")
    record(chosen.out, quick=chosen.quick, at=circumstances())


if __name__ == "__main__":
    main()

"""Stated devices, for machines that are not at hand or not calibrated; docs/reference/hardware.md has the sources."""

import re
from dataclasses import dataclass
from typing import Literal

from lampseg.errors import UserError
from lampseg.hardware.device import Hardware, Link, Precision
from lampseg.hardware.rates import Curve, Dense, Rates, Surface

GIB = 1024.0**3


@dataclass(frozen=True)
class Card:
    """A GPU as its maker describes it."""

    title: str
    memory: float
    """Bytes."""
    bytes_per_second: float
    """Of its memory."""
    flops: dict[Precision, float]
    """Peak FLOP/s of dense products: float32 with TF32 where the card has it, bfloat16 with float32 sums."""
    link: float
    """Bytes per second to another card, in one direction: NVLink where usual, else PCIe."""
    tensor_cores: bool
    """Whether float32 and bfloat16 run on tensor cores; float64 is taken not to."""


def _card(
    title: str, gib: float, memory: float, link: float, *, float32: float, bfloat16: float, float64: float
) -> Card:
    flops: dict[Precision, float] = {"float32": float32 * 1e12, "bfloat16": bfloat16 * 1e12, "float64": float64 * 1e12}
    return Card(title, gib * GIB, memory * 1e9, flops, link * 1e9, tensor_cores=bfloat16 > float32)


_V100 = {"float32": 15.7, "bfloat16": 15.7, "float64": 7.8}  # it has no bfloat16 units: those of float32 do the work
_A100 = {"float32": 156, "bfloat16": 312, "float64": 9.7}
_H100 = {"float32": 495, "bfloat16": 989, "float64": 34}
_A10 = {"float32": 62.5, "bfloat16": 125, "float64": 0.49}
_A40 = {"float32": 74.8, "bfloat16": 149.7, "float64": 0.58}

# Memory in GiB, memory and link bandwidth in GB/s, peaks in TFLOP/s.
CARDS: dict[str, Card] = {
    "v100-16": _card("NVIDIA V100 SXM2 16 GB", 16, 900, 150, **_V100),
    "v100-32": _card("NVIDIA V100 SXM2 32 GB", 32, 900, 150, **_V100),
    "a100-40": _card("NVIDIA A100 SXM 40 GB", 40, 1555, 300, **_A100),
    "a100-80": _card("NVIDIA A100 SXM 80 GB", 80, 2039, 300, **_A100),
    "h100": _card("NVIDIA H100 SXM 80 GB", 80, 3350, 450, **_H100),
    "h200": _card("NVIDIA H200 SXM 141 GB", 131, 4800, 450, **_H100),
    "rtx3090": _card("NVIDIA GeForce RTX 3090", 24, 936, 32, float32=35.6, bfloat16=71, float64=0.56),
    "rtx4090": _card("NVIDIA GeForce RTX 4090", 24, 1008, 32, float32=82.6, bfloat16=165, float64=1.3),
    "16GiB": _card("a card of 16 GiB (as a V100)", 16, 900, 32, **_V100),
    "24GiB": _card("a card of 24 GiB (as an A10)", 24, 600, 32, **_A10),
    "32GiB": _card("a card of 32 GiB (as a V100)", 32, 900, 32, **_V100),
    "48GiB": _card("a card of 48 GiB (as an A40)", 48, 696, 32, **_A40),
    "80GiB": _card("a card of 80 GiB (as an A100)", 80, 1935, 32, **_A100),
}
ALIASES = {"v100": "v100-16", "a100": "a100-80", "h100-80": "h100", "h200-141": "h200"}
GENERIC = ("16GiB", "24GiB", "32GiB", "48GiB", "80GiB")

# What is achieved of the peaks: assumptions in round figures, see docs/reference/hardware.md.
CHANNELS = (1.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
TENSOR_CORE_SHARE = (0.01, 0.03, 0.05, 0.10, 0.18, 0.28, 0.33)
PLAIN_SHARE = (0.06, 0.15, 0.25, 0.40, 0.55, 0.60, 0.60)
"""Of a convolution's peak, by the smaller of its input and output channels; without tensor cores more is reached."""
BACKWARD_SHARE = 0.8
"""The speed of a convolution's backward as part of that of its forward."""
MEMORY_SHARES = {
    "pointwise": 0.75,
    "in_place": 0.75,
    "norm/forward": 0.55,
    "norm/backward": 0.55,
    "pool/forward": 0.5,
    "pool/backward": 0.3,
    "resample/forward": 0.5,
    "resample/backward": 0.2,
}
LINK_SHARE = 0.7
CARD_LATENCY = 20e-6
CARD_OVERHEAD = 10e-6
"""Seconds of one small call: what the host needs to start a kernel."""
CARD_RESERVE = 1.0 * GIB
"""CUDA context with its loaded kernels, cuDNN and cuBLAS handles, NCCL's buffers."""


def preset(name: str, *, kind: str, threads: int = 1) -> Hardware:
    """A stated device by name.

    Raises:
        UserError: no such name, or a card for a run on the CPU.
    """
    key = ALIASES.get(name.lower(), name.lower())
    if key == "cpu":
        if kind != "cpu":
            raise UserError("hardware: `cpu` is no CUDA device; name one of " + ", ".join(CARDS))
        return cpu_core(threads)
    card = next((card for own, card in CARDS.items() if own.lower() == key), None)
    if card is None:
        raise UserError(
            f"hardware: `{name}` is not known; name one of cpu, {', '.join(CARDS)}, a size such as 24GiB, or the file "
            "of a calibration (*.json)"
        )
    if kind != "cuda":
        raise UserError(
            f"hardware: `{name}` is a CUDA device, but the run is planned for the CPU; name `cpu` or a size"
        )
    return _hardware(card, source=f"stated preset {key}, not measured: `lampseg calibrate` measures this machine")


def generic_card(memory: float) -> Hardware:
    """A card of which only the memory is known: the generic one nearest in size, with exactly this memory."""
    name = min(GENERIC, key=lambda name: abs(CARDS[name].memory - memory))
    source = f"stated preset {name} for a card of {memory / GIB:.4g} GiB, not measured"
    return _hardware(CARDS[name], source=source).with_memory(memory)


def local_preset(kind: Literal["cpu", "cuda"], *, device: str | None, threads: int) -> Hardware:
    """The preset nearest to this machine's device; for CUDA where there is none, an 80 GiB card."""
    if kind == "cpu":
        return cpu_core(threads)
    if device is None:
        return generic_card(CARDS["80GiB"].memory)
    import torch

    memory = float(torch.cuda.get_device_properties(0).total_memory)
    text = re.sub(r"[^a-z0-9]", "", device.lower())
    near = [name for name in CARDS if name not in GENERIC and name.split("-")[0] in text]
    if not near:
        return generic_card(memory)
    name = min(near, key=lambda name: abs(CARDS[name].memory - memory))
    return preset(name, kind="cuda").with_memory(memory)


def names_of_cards() -> list[str]:
    """Names that `--devices NxNAME` knows, in lower case."""
    return [name.lower() for name in (*ALIASES, *CARDS) if name not in GENERIC]


def _hardware(card: Card, *, source: str) -> Hardware:
    share = LINK_SHARE * card.link
    return Hardware(
        name=card.title,
        kind="cuda",
        source=source,
        processes=1,
        threads=1,
        memory=card.memory,
        reserve_bytes=CARD_RESERVE,
        link=Link(CARD_LATENCY, share, CARD_LATENCY, share),
        rates={precision: _card_rates(card, precision) for precision in card.flops},
    )


def _card_rates(card: Card, precision: Precision) -> Rates:
    peak = card.flops[precision]
    shares = TENSOR_CORE_SHARE if card.tensor_cores and precision != "float64" else PLAIN_SHARE
    dense = {}
    for direction, part in (("forward", 1.0), ("backward", BACKWARD_SHARE)):
        surface = _surface(CHANNELS, [peak * share * part for share in shares])
        for kind in ("convolution", "transposed_convolution", "pointwise_convolution"):
            # A convolution moves its tensors as well; that counts beside the products.
            dense[f"{kind}/direct/{direction}"] = Dense(surface, (1.0,), (1 / (0.5 * card.bytes_per_second),))
    dense["matmul/direct/forward"] = Dense(_surface(CHANNELS, [peak * share for share in shares]))
    moved = {key: Curve((1.0,), (share * card.bytes_per_second,)) for key, share in MEMORY_SHARES.items()}
    # RMSprop reads and writes parameter, gradient and square average.
    return Rates(dense, moved, CARD_OVERHEAD, CARD_OVERHEAD, 5 / (0.7 * card.bytes_per_second), asynchronous=True)


# One core of a server CPU with AVX-512, in GFLOP/s and GB/s. Rounded from a measurement, see the reference.
_CORE_CHANNELS = (1.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_CORE_OUT = (4.0, 8.0, 16.0, 32.0, 64.0)
# fmt: off
_CORE_DIRECT: dict[str, tuple[tuple[float, ...], ...]] = {
    "convolution/direct/forward": (
        (10, 20, 10, 10, 10), (22, 44, 70, 80, 80), (25, 47, 90, 95, 100), (16, 32, 65, 75, 85), (16, 45, 70, 85, 95),
        (18, 40, 70, 85, 100),
    ),
    "convolution/direct/backward": (
        (2, 3, 5, 8, 8), (4, 8, 14, 20, 24), (5, 10, 19, 28, 37), (17, 34, 65, 70, 72), (18, 45, 70, 80, 84),
        (18, 36, 70, 76, 84),
    ),
}
# fmt: on
_CORE_UNFOLDED = {"forward": (4.0, 8.0, 13.0, 25.0, 35.0), "backward": (3.0, 6.0, 12.0, 22.0, 28.0)}
"""The slow path, by output channels alone."""
_CORE_POINTWISE = {"forward": (3.0, 10.0, 20.0, 40.0, 65.0, 80.0), "backward": (3.0, 6.0, 10.0, 20.0, 32.0, 50.0)}
_CORE_TRANSPOSED = {"forward": (1.5, 2.0, 3.0, 5.0, 8.0, 10.0), "backward": (3.0, 5.0, 8.0, 15.0, 25.0, 32.0)}
_CORE_BYTES = {
    "pointwise": 6e9,
    "in_place": 12e9,
    "norm/forward": 3e9,
    "norm/backward": 5e9,
    "pool/forward": 0.8e9,
    "pool/backward": 4e9,
    "resample/forward": 2e9,
    "resample/backward": 2e9,
}


def cpu_core(threads: int) -> Hardware:
    """One CPU process of so many threads: arithmetic grows with them, memory speed with their square root."""
    moved = {key: Curve((1.0,), (rate * threads**0.5,)) for key, rate in _CORE_BYTES.items()}
    spill = (1e6, 3e7, 1e8), tuple(value / threads**0.5 for value in (0.0, 3e-10, 8e-10))
    gflops = 1e9 * threads
    dense = {}
    for name, rows in _CORE_DIRECT.items():
        rates = tuple(tuple(gflops * rate for rate in row) for row in rows)
        dense[name] = Dense(Surface(_CORE_CHANNELS, _CORE_OUT, rates), *spill)
    for direction in ("forward", "backward"):
        row = tuple(gflops * rate for rate in _CORE_UNFOLDED[direction])
        unfolded = Surface((1.0,), _CORE_OUT, (row,))
        dense[f"convolution/fallback/{direction}"] = Dense(unfolded, *spill)
        dense[f"transposed_convolution/fallback/{direction}"] = Dense(unfolded, *spill)
        for kind, by_channels in (("pointwise", _CORE_POINTWISE), ("transposed", _CORE_TRANSPOSED)):
            surface = _surface(_CORE_CHANNELS, [gflops * rate for rate in by_channels[direction]])
            dense[f"{kind}_convolution/direct/{direction}"] = Dense(surface, *spill)
    dense["matmul/direct/forward"] = Dense(_surface(_CORE_CHANNELS, [gflops * r for r in _CORE_POINTWISE["forward"]]))
    rates_of_core = Rates(dense, moved, 15e-6, 25e-6, 5 / (6e9 * threads**0.5))
    return Hardware(
        name="a CPU core" if threads == 1 else f"{threads} CPU cores",
        kind="cpu",
        source="stated preset cpu, not measured: `lampseg calibrate` measures this machine",
        processes=1,
        threads=threads,
        memory=None,
        reserve_bytes=0.0,
        link=Link(2e-4, 1e9, 2e-4, 0.7e9),
        rates={"float32": rates_of_core},
    )


def _surface(channels: tuple[float, ...], rates: list[float]) -> Surface:
    """By the smaller of input and output channels."""
    rows = tuple(tuple(rates[min(i, o)] for o in range(len(channels))) for i in range(len(channels)))
    return Surface(channels, channels, rows)

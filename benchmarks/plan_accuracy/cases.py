"""Ways to run networks whose memory is predicted and measured."""

from dataclasses import dataclass, replace

from lampseg.partition.plan import Recompute
from lampseg.partition.schedule import Schedule


@dataclass(frozen=True)
class Case:
    """One network and one way to run it."""

    network: str
    shape: tuple[int, ...]
    """Of one micro-batch, (N, C, *spatial)."""
    devices: int = 2
    micro_batches: int = 4
    schedule: Schedule = "1f1b"
    recompute: Recompute | tuple[Recompute, ...] = "none"
    replicas: int = 1
    precision: str = "float32"

    @property
    def processes(self) -> int:
        return self.devices * self.replicas

    @property
    def stages(self) -> int:
        return 2 * self.devices if self.schedule in ("v", "interleaved") and self.devices > 1 else self.devices

    @property
    def modes(self) -> tuple[Recompute, ...]:
        return (self.recompute,) * self.stages if isinstance(self.recompute, str) else self.recompute

    @property
    def way(self) -> str:
        again = self.recompute if isinstance(self.recompute, str) else "/".join(self.recompute)
        replicas = f"{self.replicas} x " if self.replicas > 1 else ""
        return (
            f"{'x'.join(map(str, self.shape))}, {replicas}K={self.devices}, M={self.micro_batches}, {self.schedule}, "
            f"recompute {again}, {self.precision}"
        )


_CUBE = (1, 1, 32, 32, 32)
_FLAT = (1, 1, 48, 32, 40)
_PAIR = (2, 1, 32, 32, 32)
_LARGER = (1, 1, 64, 64, 64)

CASES: tuple[Case, ...] = (
    Case("unet", _LARGER, devices=1, micro_batches=1),
    Case("unet", _LARGER, devices=2, schedule="gpipe"),
    Case("unet", _LARGER, devices=2, schedule="1f1b", recompute="all"),
    Case("unet", _PAIR, devices=3, schedule="1f1b", recompute=("all", "none", "none")),
    Case("unet", _FLAT, devices=2, schedule="v", micro_batches=4),
    Case("unet", _FLAT, devices=2, schedule="interleaved", micro_batches=8),
    Case("unet", _LARGER, devices=2, precision="bfloat16"),
    Case("unet", _CUBE, devices=2, precision="float64", recompute="all_but_last"),
    Case("unet", _FLAT, devices=1, replicas=2, micro_batches=4),
    Case("unet", _FLAT, devices=2, replicas=2, micro_batches=8),
    Case("seunet", _FLAT, devices=2),
    Case("seunet", _LARGER, devices=2, schedule="gpipe", recompute="all", micro_batches=2),
    Case("seunet", _CUBE, devices=4, micro_batches=8),
    Case("seunet", _FLAT, devices=2, schedule="v", recompute="all"),
    Case("seunet", _FLAT, devices=2, precision="bfloat16", schedule="gpipe"),
    Case("basicunet", _LARGER, devices=1, micro_batches=4),
    Case("basicunet", _LARGER, devices=2),
    Case("basicunet", _CUBE, devices=4, schedule="gpipe", recompute="all_but_last"),
    Case("basicunet", _PAIR, devices=2, schedule="interleaved", recompute="all"),
    Case("basicunet", _FLAT, devices=2, precision="float64"),
    Case("basicunet", _FLAT, devices=3, precision="bfloat16", recompute="all"),
    Case("dynunet", _LARGER, devices=2),
    Case("dynunet", _FLAT, devices=3, schedule="gpipe", micro_batches=3),
    Case("dynunet", _PAIR, devices=2, schedule="v", micro_batches=2),
    Case("dynunet-deep", _FLAT, devices=2, recompute=("none", "all")),
    Case("dynunet", _FLAT, devices=2, precision="bfloat16"),
    Case("segresnet", _LARGER, devices=2, micro_batches=2),
    Case("segresnet", _FLAT, devices=2, recompute="all", schedule="gpipe"),
    Case("attentionunet", _FLAT, devices=2),
    Case("attentionunet", _CUBE, devices=2, schedule="v", recompute=("all", "none", "none", "all")),
    Case("monai-unet", _LARGER, devices=2, micro_batches=1),
    Case("monai-unet", _FLAT, devices=4, micro_batches=8),
    Case("plainconvunet", _LARGER, devices=2),
    Case("plainconvunet", _FLAT, devices=2, schedule="interleaved"),
    Case("plainconvunet", _FLAT, devices=2, replicas=2, micro_batches=4, recompute="all"),
    Case("residualencoderunet", _FLAT, devices=3),
    Case("residualencoderunet", _FLAT, devices=2, precision="float64", schedule="gpipe"),
    Case("unetr", _CUBE, devices=2),
    Case("swinunetr", (1, 1, 64, 32, 64), devices=2, schedule="gpipe", micro_batches=2),
    Case("vnet", _CUBE, devices=2, micro_batches=2),
)

QUICK: tuple[Case, ...] = (
    Case("basicunet", (1, 1, 32, 16, 16), devices=2, micro_batches=2),
    Case("unet", (1, 1, 32, 16, 16), devices=1, replicas=2, micro_batches=2),
)
TIMED: tuple[Case, ...] = tuple(
    replace(case, network=network)
    for network, shape in (
        ("unet", (1, 1, 64, 64, 64)),
        ("basicunet", (1, 1, 64, 64, 64)),
        ("dynunet", (1, 1, 64, 64, 64)),
        ("plainconvunet", (1, 1, 64, 64, 64)),
    )
    for case in (
        Case("", shape, devices=2, micro_batches=2, schedule="gpipe"),
        Case("", shape, devices=2, micro_batches=4),
        Case("", shape, devices=2, micro_batches=4, schedule="v"),
        Case("", shape, devices=2, micro_batches=2, recompute="all"),
        Case("", shape, devices=1, replicas=2, micro_batches=4),
    )
)
"""Both cores compute in all of them: one process would have the other core to itself, or its second thread."""
QUICK_TIMED: tuple[Case, ...] = (
    Case("basicunet", (1, 1, 32, 16, 16), devices=2, micro_batches=2),
    Case("basicunet", (1, 1, 32, 16, 16), devices=1, replicas=2, micro_batches=2),
)

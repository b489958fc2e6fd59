"""stand-in"""

from dataclasses import dataclass

from lampseg.partition.kernel import Kernel


@dataclass(frozen=True)
class Hardware:
    source: str = "stand-in"
    kind: str = "cpu"
    memory: float | None = None
    reserve_bytes: float = 0.0

    def seconds(self, kernel: Kernel, *, precision: str = "float32") -> float:
        return kernel.flops / 4e10 + kernel.nbytes / 6e9

    def transfer_seconds(self, n: float) -> float:
        return 1e-4 + n / 1e9

    def all_reduce_seconds(self, n: float, ranks: int) -> float:
        return 1e-4 + 2 * n / 1e9

    def workspace_bytes(self, k: Kernel) -> float:
        return 0.0

    def optimizer_seconds(self, n: float) -> float:
        return 5 * n / 6e9


def hardware_for(*, kind: str, name: str | None = None, processes: int = 1) -> Hardware:
    return Hardware()

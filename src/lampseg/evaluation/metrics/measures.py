"""The metrics an evaluation can hold: name, unit, which way is better, and how a value is written."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lampseg.errors import UserError
from lampseg.evaluation.tables import ABSENT

Better = Literal["higher", "lower", "nearer to 0"]


@dataclass(frozen=True)
class Metric:
    """One metric; docs/reference/evaluation.md has its formula."""

    name: str
    """As in files and options."""
    title: str
    """As in tables."""
    unit: str
    """mm, ml, or empty for a fraction."""
    better: Better
    decimals: int = 3
    surfaces: bool = False
    """Needs the surfaces of both masks, which take longer than counting voxels."""

    @property
    def heading(self) -> str:
        """Title with unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def text(self, value: float | None) -> str:
        """A value in its unit, without it."""
        return ABSENT if value is None else f"{value:.{self.decimals}f}"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("dice", "Dice", "", "higher"),
        Metric("jaccard", "Jaccard", "", "higher"),
        Metric("sensitivity", "Sensitivity", "", "higher"),
        Metric("precision", "Precision", "", "higher"),
        Metric("volume_error", "Volume error", "ml", "nearer to 0", decimals=2),
        Metric("relative_volume_error", "Relative volume error", "", "nearer to 0"),
        Metric("hd95", "HD95", "mm", "lower", decimals=2, surfaces=True),
        Metric("assd", "ASSD", "mm", "lower", decimals=2, surfaces=True),
        Metric("nsd", "Surface Dice", "", "higher", surfaces=True),
    )
}
"""All of them by name, in the order of tables."""


def choose_metrics(names: str | Iterable[str] = "all", *, option: str = "--metrics") -> tuple[str, ...]:
    """Names of metrics, or `all`, in the order of `METRICS`; a string may hold several, separated by commas.

    Raises:
        UserError: none, or a name that is no metric; `option` says where it came from.
    """
    parts = names.split(",") if isinstance(names, str) else [str(name) for name in names]
    wanted = [part.strip() for part in parts if part.strip()]
    if not wanted:
        raise UserError(f"{option}: names no metric; choose from {', '.join(METRICS)}, or all")
    unknown = [name for name in wanted if name != "all" and name not in METRICS]
    if unknown:
        raise UserError(f"{option}: `{unknown[0]}` is no metric; choose from {', '.join(METRICS)}, or all")
    return tuple(METRICS) if "all" in wanted else tuple(name for name in METRICS if name in wanted)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that are metrics, in the order of `METRICS`."""
    found: Sequence[str] = list(names)
    return tuple(name for name in METRICS if name in found)

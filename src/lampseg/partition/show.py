"""A plan in the terminal: one line of choices and a table of its devices."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lampseg.partition.plan import Plan
from lampseg.partition.units import format_bytes, format_count


def plan_table(plan: Plan) -> Table:
    """The stages as a table for the terminal; it fits 80 columns."""
    table = Table(title=plan.headline(), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("dev", justify="right")
    table.add_column("begins with", overflow="fold")
    for name in ("weights", "memory", "activations", "receives", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    total = max(sum(stage.forward_seconds + stage.backward_seconds for stage in plan.stages), 1e-30)
    for stage in plan.stages:
        table.add_row(
            str(stage.device),
            stage.begins,
            format_count(stage.parameters),
            format_bytes(plan.devices[stage.device].peak_bytes),
            f"{stage.in_flight}x{format_bytes(stage.activation_bytes)}",
            format_bytes(stage.receive_bytes),
            f"{(stage.forward_seconds + stage.backward_seconds) / total:.0%}",
        )
    return table

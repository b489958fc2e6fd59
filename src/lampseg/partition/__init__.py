"""From a recorded network and devices to a Plan: cost model, exact cuts, search, forecast."""

from lampseg.partition.costed import cost_network, record_for
from lampseg.partition.placement import Placement, place, transfer
from lampseg.partition.plan import Choices, Plan, Stage, plans_from_json, plans_to_json
from lampseg.partition.planner import make_plan
from lampseg.recording.graph import Graph
from lampseg.recording.record import record
from lampseg.units import format_bytes

__all__ = [
    "Choices",
    "Graph",
    "Placement",
    "Plan",
    "Stage",
    "cost_network",
    "format_bytes",
    "make_plan",
    "place",
    "plans_from_json",
    "plans_to_json",
    "record",
    "record_for",
    "transfer",
]

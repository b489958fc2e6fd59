"""From a network, an input shape and devices to a Plan: dry run, cost model, exact solver."""

from lampseg.partition.cost import Training
from lampseg.partition.graph import Graph
from lampseg.partition.placement import Placement, place, transfer
from lampseg.partition.plan import Plan, Stage, format_bytes, plans_from_json, plans_to_json
from lampseg.partition.planner import make_plan, record_for
from lampseg.partition.record import record

__all__ = [
    "Graph",
    "Placement",
    "Plan",
    "Stage",
    "Training",
    "format_bytes",
    "make_plan",
    "place",
    "plans_from_json",
    "plans_to_json",
    "record",
    "record_for",
    "transfer",
]

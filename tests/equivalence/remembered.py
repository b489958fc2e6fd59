"""Recordings and plans, each made once: most tests need what others did already, and it takes longer than a run."""

from typing import Any

from torch import nn

from lampseg.partition import Graph, Plan, make_plan, record_for

graphs: dict[Any, Graph] = {}


def recorded_once(network: nn.Module, **options: Any) -> Graph:
    """`record_for`, remembered."""
    key = _key(network, {"gradients": True} | options)
    if key not in graphs:
        graphs[key] = record_for(network, **options)
    return graphs[key]


plans: dict[Any, Plan] = {}


def planned_once(network: nn.Module, **options: Any) -> Plan:
    key = _key(network, options)
    if key not in plans:
        plans[key] = make_plan(network, **options)
    return plans[key]


def _key(network: nn.Module, options: dict[str, Any]) -> Any:
    parameters = [(name, p.dtype, p.requires_grad) for name, p in network.named_parameters()]
    # What its printed form does not show, such as whether it returns the outputs for deep supervision.
    kinds = bool | int | float | str | tuple
    settings = [(key, value) for m in network.modules() for key, value in vars(m).items() if isinstance(value, kinds)]
    return repr(network), str(parameters), str(settings), str(sorted(options.items()))

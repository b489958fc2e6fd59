"""The dry run of a network and its backward on fake tensors: operations, kernels, bytes alive; nothing is computed."""

from lampseg.recording.graph import Graph, Operation, Value, ValueId
from lampseg.recording.record import record

__all__ = ["Graph", "Operation", "Value", "ValueId", "record"]

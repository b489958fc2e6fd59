"""Data parallelism: copies of the pipeline that share the micro-batches of a step and stay equal."""

from lampseg.parallel.replicas.together import Replicas

__all__ = ["Replicas"]

"""Pipeline parallelism for unmodified networks: stages, schedules, routes, recompute."""

from lampseg.parallel.pipeline.runner import PipelineRunner, places_of

__all__ = ["PipelineRunner", "places_of"]

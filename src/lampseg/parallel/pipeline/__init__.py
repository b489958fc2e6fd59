"""Pipeline parallelism for unmodified networks: stages, schedules, routes, recompute."""

from lampseg.parallel.pipeline.runner import PipelineRunner
from lampseg.parallel.pipeline.schedule import Action, actions

__all__ = ["Action", "PipelineRunner", "actions"]

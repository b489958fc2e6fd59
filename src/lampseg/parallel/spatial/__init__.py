"""Spatial parallelism: every rank holds a slab of the volume through the whole, unmodified network."""

from lampseg.parallel.spatial import rules  # noqa: F401  (the functions that slab mode knows)
from lampseg.parallel.spatial.checkpointed import checkpointed
from lampseg.parallel.spatial.mode import SpatialParallel
from lampseg.parallel.spatial.refusal import NotExactError
from lampseg.parallel.spatial.self_check import check_slabs

__all__ = ["NotExactError", "SpatialParallel", "check_slabs", "checkpointed"]

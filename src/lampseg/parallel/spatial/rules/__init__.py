"""The functions that are known to be exact on slabs, one file for each kind."""

from lampseg.parallel.spatial.rules import (  # noqa: F401  (they enter their rules)
    elementwise,
    interpolation,
    lookup,
    losses,
    norms,
    padding,
    reductions,
    shapes,
    windows,
)

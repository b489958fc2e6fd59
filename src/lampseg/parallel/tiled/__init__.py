"""Tiling: one device runs the whole, unmodified network, its convolutions tile by tile with the norms around them."""

from lampseg.parallel.tiled.passes import TiledPasses

__all__ = ["TiledPasses"]

"""Solids with a distance function in mm (negative inside), from which the phantom head is put together."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
"""One value per voxel, (X, Y, Z)."""
Points = npt.NDArray[np.float32]
"""Head coordinates of every voxel in mm, (3, X, Y, Z)."""
Vector = tuple[float, float, float]


class Shape(Protocol):
    """A solid: `distance` is about the distance to its surface in mm, negative inside."""

    def distance(self, points: Points) -> Field: ...


@dataclass(frozen=True)
class Ellipsoid:
    """Semi-axes `radii` along x, y, z."""

    centre: Vector
    radii: Vector

    def distance(self, points: Points) -> Field:
        # Quotient of the implicit function and its gradient: exact on the surface, good near it.
        scaled = _offset(points, self.centre) / _column(self.radii)
        inner = np.sqrt((scaled**2).sum(0))
        slope = np.sqrt(((scaled / _column(self.radii)) ** 2).sum(0))
        out: Field = inner * (inner - 1) / np.maximum(slope, 1e-6)
        return out


@dataclass(frozen=True)
class Box:
    """A cuboid of half-lengths `half`, edges rounded by `rounding` mm."""

    centre: Vector
    half: Vector
    rounding: float = 3.0

    def distance(self, points: Points) -> Field:
        over = np.abs(_offset(points, self.centre)) - _column(self.half) + np.float32(self.rounding)
        outside = np.sqrt((np.maximum(over, 0) ** 2).sum(0))
        out: Field = outside + np.minimum(over.max(0), 0) - np.float32(self.rounding)
        return out


@dataclass(frozen=True)
class Tube:
    """A round tube along the polyline `path`; with `height`, an upright wall of twice `radius` across."""

    path: tuple[Vector, ...]
    radius: float
    height: float | None = None

    def distance(self, points: Points) -> Field:
        flat = self.height is not None
        axes = slice(0, 2) if flat else slice(0, 3)
        best = np.full(points.shape[1:], np.inf, np.float32)
        for start, stop in zip(self.path[:-1], self.path[1:]):
            offset = _offset(points, start)[axes]
            along = np.array(stop[axes], np.float32) - np.array(start[axes], np.float32)
            share = np.tensordot(along, offset, 1) / np.float32(along @ along)
            nearest = offset - np.clip(share, 0, 1) * _column(along)
            best = np.minimum(best, (nearest**2).sum(0))
        out: Field = np.sqrt(best) - np.float32(self.radius)
        if self.height is not None:
            middle = np.float32(np.mean([point[2] for point in self.path]))
            out = np.maximum(out, np.abs(points[2] - middle) - np.float32(self.height / 2))
        return out


@dataclass(frozen=True)
class Union:
    """All points of any of the `parts`."""

    parts: tuple[Shape, ...]

    def distance(self, points: Points) -> Field:
        out = self.parts[0].distance(points)
        for part in self.parts[1:]:
            out = np.minimum(out, part.distance(points))
        return out


@dataclass(frozen=True)
class Cut:
    """The points of `shape` that are not in `tool`."""

    shape: Shape
    tool: Shape

    def distance(self, points: Points) -> Field:
        out: Field = np.maximum(self.shape.distance(points), -self.tool.distance(points))
        return out


@dataclass(frozen=True)
class Grown:
    """`shape` thickened by `by` mm (thinned, if negative)."""

    shape: Shape
    by: float

    def distance(self, points: Points) -> Field:
        out: Field = self.shape.distance(points) - np.float32(self.by)
        return out


@dataclass(frozen=True)
class Posed:
    """`shape` scaled and turned about `pivot`, then moved: one case's own size and pose of an organ."""

    shape: Shape
    pivot: Vector
    scale: float
    degrees: Vector
    shift: Vector

    def distance(self, points: Points) -> Field:
        from scipy.spatial.transform import Rotation

        turn = Rotation.from_euler("xyz", self.degrees, degrees=True).as_matrix().T / self.scale
        moved = _offset(points, tuple(np.add(self.pivot, self.shift)))
        local = np.tensordot(turn.astype(np.float32), moved, 1) + _column(self.pivot)
        out: Field = self.shape.distance(local) * np.float32(self.scale)
        return out


def _column(values: Sequence[float] | npt.NDArray[Any]) -> Points:
    return np.asarray(values, np.float32)[:, None, None, None]


def _offset(points: Points, centre: Sequence[float]) -> Points:
    out: Points = points - _column(centre)
    return out

"""The phantom head: which solid of which density lies where, in head coordinates (mm; right, front, top positive).

Everything comes in left-right pairs or lies in the middle. Around the paired organs the surroundings are built so
that they look alike on either side up to about 15 mm: a parotid has air laterally (the skin) and medially (air
cells), a submandibular gland bone laterally (mandible) and medially (hyoid). What tells left from right is where the
organ lies in the head as a whole.
"""

from dataclasses import dataclass

import numpy as np

from lampseg.data.phantom.shapes import Box, Cut, Ellipsoid, Grown, Posed, Shape, Tube, Union, Vector

AIR = -1000.0
_FAT, _MUSCLE, _WATER, _BONE = -80.0, 52.0, 8.0, 700.0
_LEFT, _RIGHT = -1, 1


@dataclass(frozen=True)
class Tissue:
    """One solid of constant density; later ones in the list cover earlier ones."""

    shape: Shape
    hounsfield: float
    organ: int = 0
    """Label value, 0 for what is no organ."""


def head(rng: np.random.Generator) -> tuple[Tissue, ...]:
    """All tissues in the order of painting, organs (with a size and pose of their own) where they belong."""
    skin = Union(
        (
            Ellipsoid((0, -10, 32), (78, 98, 88)),
            Ellipsoid((0, 12, -48), (78, 80, 58)),
            Ellipsoid((0, 40, -4), (64, 58, 46)),
            Ellipsoid((0, 94, -24), (12, 16, 20)),
            Tube(((0, -16, -60), (0, -22, -400)), 60),
        )
    )
    brain = Union(
        (
            Ellipsoid((0, -12, 50), (66, 84, 58)),
            Ellipsoid((0, -48, 2), (54, 48, 38)),
            Ellipsoid((-38, 2, 2), (22, 34, 22)),
            Ellipsoid((38, 2, 2), (22, 34, 22)),
        )
    )
    stem_way = Tube(((0, -12, 5), (0, -24, -60)), 15)
    spine = Tube(((0, -6, -62), (0, -10, -400)), 13)
    canal = Tube(((0, -24, -45), (0, -28, -400)), 9)
    context = [
        Tissue(skin, _FAT),
        Tissue(Grown(skin, -5), _MUSCLE),
        Tissue(Cut(Grown(brain, 6), stem_way), _BONE),
        Tissue(brain, _WATER),
        Tissue(Grown(brain, -2.5), 34),
        Tissue(Union((Ellipsoid((-10, -12, 44), (6, 28, 11)), Ellipsoid((10, -12, 44), (6, 28, 11)))), _WATER),
        Tissue(Union((spine, Grown(canal, 5))), 450),
        Tissue(canal, _WATER),
        Tissue(Tube(((0, -24, -52), (0, -28, -400)), 5.5), 42),
        Tissue(Union((Ellipsoid((0, -10, -8), (21, 19, 19)), Tube(((0, -14, 5), (0, -24, -50)), 12))), _WATER),
        Tissue(Ellipsoid((0, 17, 6), (19, 15, 11)), _WATER),
        Tissue(Ellipsoid((0, 58, -30), (10, 32, 15)), AIR),
        Tissue(Tube(((0, 34, -34), (0, 22, -60), (0, 20, -110), (0, 16, -400)), 9), AIR),
        Tissue(_dental_arch(-54), 1200),
        Tissue(Tube(((-12, 14, -82), (-14, 48, -80), (0, 58, -80), (14, 48, -80), (12, 14, -82)), 4), 500),
    ]
    for side in (_LEFT, _RIGHT):
        context += _side(side)
    organs = [Tissue(_own_pose(shape, pivot, rng), hu, label) for shape, pivot, hu, label in _organs()]
    return (*context, *organs)


def _side(side: int) -> list[Tissue]:
    """What lies on each side: orbit and eye, maxillary sinus, air cells behind the jaw."""
    orbit = Ellipsoid((side * 26, 62, 2), (17, 31, 16))
    air_cells = Box((side * 25, -6, -43), (10.5, 19, 25), rounding=6)
    return [
        Tissue(Grown(orbit, 3), 500),
        Tissue(orbit, _FAT),
        Tissue(Ellipsoid((side * 27, 80, 2), (12, 12, 12)), 12),
        Tissue(Grown(Ellipsoid((side * 26, 58, -32), (11, 14, 10)), 2.5), 400),
        Tissue(Ellipsoid((side * 26, 58, -32), (11, 14, 10)), AIR),
        Tissue(Grown(air_cells, 4), _FAT),
        Tissue(air_cells, AIR),
    ]


def _dental_arch(z: float) -> Shape:
    return Tube(((-32, 30, z), (-27, 56, z), (-11, 72, z), (11, 72, z), (27, 56, z), (32, 30, z)), 5)


def _organs() -> list[tuple[Shape, Vector, float, int]]:
    """Shape, pivot of its random pose, Hounsfield units and label value."""
    stem = Union(
        (
            Ellipsoid((0, -10, -8), (17, 14, 14)),
            Ellipsoid((0, -12, 9), (14, 11, 10)),
            Tube(((0, -14, -12), (0, -24, -46)), 7.5),
        )
    )
    arch = tuple(
        (x, y, -72.0) for x, y in ((-44, 6), (-43, 32), (-31, 60), (-12, 76), (12, 76), (31, 60), (43, 32), (44, 6))
    )
    jaw = Union((Tube(arch, 6, height=25), *(Box((side * 46, 14, -50), (5.5, 13, 30)) for side in (_LEFT, _RIGHT))))
    chiasm = Union(
        (
            Ellipsoid((0, 17, 6), (8, 6, 4)),
            Tube(((-10, 26, 5), (0, 17, 6), (10, 8, 7)), 3.5),
            Tube(((10, 26, 5), (0, 17, 6), (-10, 8, 7)), 3.5),
        )
    )
    found: list[tuple[Shape, Vector, float, int]] = [
        (stem, (0, -14, -14), 44, 1),
        (jaw, (0, 30, -64), 800, 3),
    ]
    for side in (_LEFT, _RIGHT):
        nerve = Tube(((side * 27, 68, 2), (side * 23, 40, 4), (side * 9, 25, 5)), 4)
        parotid = Union((Ellipsoid((side * 56, -6, -42), (12.5, 16, 24)), Ellipsoid((side * 56, 4, -36), (9, 16, 13))))
        gland = Ellipsoid((side * 27, 32, -84), (9, 15, 11))
        found += [
            (nerve, (side * 22, 42, 4), 42, 4 if side == _LEFT else 5),
            (parotid, (side * 56, -4, -42), 12, 6 if side == _LEFT else 7),
            (gland, (side * 27, 32, -84), 26, 8 if side == _LEFT else 9),
        ]
    return [*found, (chiasm, (0, 17, 6), 44, 2)]


def _own_pose(shape: Shape, pivot: Vector, rng: np.random.Generator) -> Posed:
    """Size by a few per cent, tilt by some degrees, place by some millimetres: no two heads are alike."""
    tilt = rng.normal(0, 4, 3).clip(-8, 8)
    shift = rng.normal(0, 1.5, 3).clip(-3, 3)
    scale = float(np.exp(np.clip(rng.normal(0, 0.06), -0.12, 0.12)))
    return Posed(shape, pivot, scale, (tilt[0], tilt[1], tilt[2]), (shift[0], shift[1], shift[2]))

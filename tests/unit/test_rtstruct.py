"""Structure sets -> masks: a box, a ring, keyholes, gaps and an oblique series, voxel by voxel."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lampseg.data.dicom.structures import empty_slices_between, inside, read_structure_set, read_structures, region_mask
from lampseg.errors import UserError
from tests.dicom_files import affine_of, edit, tilted, write_structures

SHAPE = (12, 10, 8)
OBLIQUE = affine_of(tilted((15, -20, 35)), (0.8, 1.4, 3.0), (-40.0, 22.5, 61.0))
AFFINES = [affine_of(np.eye(3), (1, 1, 1), (0, 0, 0)), affine_of(tilted((90, 0, 180)), (2, 1, 2.5), (9, 8, 7)), OBLIQUE]


def box(low: tuple[float, float], high: tuple[float, float], height: float) -> Any:
    """A rectangle's corners in voxels (x, y, slice)."""
    (x0, y0), (x1, y1) = low, high
    return np.array([(x0, y0, height), (x1, y0, height), (x1, y1, height), (x0, y1, height)])


def placed(contours: Any, affine: Any) -> list[Any]:
    """From voxels to mm."""
    return [np.asarray(contour) @ affine[:3, :3].T + affine[:3, 3] for contour in contours]


def mask_of(tmp_path: Path, contours: Any, affine: Any, **options: Any) -> Any:
    path = write_structures(tmp_path / "rs.dcm", [("organ", placed(contours, affine))], **options)
    (region,) = read_structure_set(path).regions
    return region_mask(region, shape=SHAPE, affine=affine, source=path)


@pytest.mark.parametrize("affine", AFFINES)
def test_a_box(tmp_path: Path, affine: Any) -> None:
    mask = mask_of(tmp_path, [box((1.5, 2.5), (6.5, 7.5), k) for k in (2, 3, 4)], affine)
    expected = np.zeros(SHAPE, bool)
    expected[2:7, 3:8, 2:5] = True
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("affine", AFFINES)
def test_boxes_that_share_an_edge_through_pixel_centres_share_no_pixel(tmp_path: Path, affine: Any) -> None:
    left = mask_of(tmp_path, [box((2, 1), (5, 6), 3)], affine)
    right = mask_of(tmp_path, [box((5, 1), (9, 6), 3)], affine)
    expected = np.zeros(SHAPE, bool)
    expected[2:5, 1:6, 3] = True
    np.testing.assert_array_equal(left, expected)
    expected[:] = False
    expected[5:9, 1:6, 3] = True
    np.testing.assert_array_equal(right, expected)


@pytest.mark.parametrize("affine", AFFINES)
@pytest.mark.parametrize("kind", ["CLOSED_PLANAR", "CLOSEDPLANAR_XOR"])
def test_a_ring_of_two_contours(tmp_path: Path, affine: Any, kind: str) -> None:
    angle = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    circle = [np.stack([5.6 + r * np.cos(angle), 4.7 + r * np.sin(angle), 0 * angle + 3], 1) for r in (4.1, 2.2)]
    mask = mask_of(tmp_path, circle, affine, kind=kind)
    x, y = np.indices(SHAPE[:2])
    distance = np.hypot(x - 5.6, y - 4.7)
    # A polygon of 360 corners lies within 0.004% of its circle; no centre is that close to it here.
    assert np.abs(distance - 4.1).min() > 0.001
    assert np.abs(distance - 2.2).min() > 0.001
    np.testing.assert_array_equal(mask[:, :, 3], (distance < 4.1) & (distance > 2.2))
    assert mask.sum() == mask[:, :, 3].sum()


@pytest.mark.parametrize("affine", AFFINES)
def test_a_keyhole(tmp_path: Path, affine: Any) -> None:
    """One contour: round the outer square, over a bridge, round the inner one, and back over the bridge."""
    outer, inner = [(1, 1), (9, 1), (9, 8), (1, 8)], [(3, 3), (3, 6), (7, 6), (7, 3)]
    path = [*outer, outer[0], *inner, inner[0]]
    mask = mask_of(tmp_path, [[(x - 0.5, y - 0.5, 5) for x, y in path]], affine)
    expected = np.zeros(SHAPE, bool)
    expected[1:9, 1:8, 5] = True
    expected[3:7, 3:6, 5] = False
    np.testing.assert_array_equal(mask, expected)


def test_slices_between_stay_empty_and_are_counted(tmp_path: Path) -> None:
    contours = placed([box((1, 1), (4, 4), k) for k in (1, 3, 6)], OBLIQUE)
    path = write_structures(tmp_path / "rs.dcm", [("organ", contours)])
    (region,) = read_structure_set(path).regions
    mask = region_mask(region, shape=SHAPE, affine=OBLIQUE, source=path)
    assert np.flatnonzero(mask.any((0, 1))).tolist() == [1, 3, 6]
    assert empty_slices_between(region, affine=OBLIQUE, source=path) == 3


def test_planes_that_share_a_slice_are_united(tmp_path: Path) -> None:
    mask = mask_of(tmp_path, [box((1, 1), (5, 5), 2.7), box((2, 2), (8, 4), 3.3)], OBLIQUE)
    expected = np.zeros(SHAPE, bool)
    expected[1:5, 1:5, 3] = expected[2:8, 2:4, 3] = True
    np.testing.assert_array_equal(mask, expected)


def test_outside_the_grid_nothing_is_drawn(tmp_path: Path) -> None:
    mask = mask_of(tmp_path, [box((-5, -5), (50, 3), 7), box((1, 1), (4, 4), 8), box((1, 1), (4, 4), -1)], OBLIQUE)
    expected = np.zeros(SHAPE, bool)
    expected[:, :3, 7] = True
    np.testing.assert_array_equal(mask, expected)


def test_a_contour_in_another_plane_is_refused(tmp_path: Path) -> None:
    upright = [(1, 1, 1), (5, 1, 1), (5, 1, 4), (1, 1, 4)]
    with pytest.raises(UserError, match=r"rs\.dcm: a contour of 'organ' crosses slices .*3 of them"):
        mask_of(tmp_path, [upright], OBLIQUE)


def test_points_and_open_contours_are_left_out(tmp_path: Path) -> None:
    for kind in ("POINT", "OPEN_PLANAR", "OPEN_NONPLANAR"):
        path = write_structures(tmp_path / "rs.dcm", [("organ", placed([box((1, 1), (4, 4), 2)], OBLIQUE))], kind=kind)
        assert read_structure_set(path).regions == ()


def test_polygons_of_any_shape_against_a_slow_rule() -> None:
    """The even-odd rule by counting the crossings of a ray, pixel by pixel."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        polygons = [rng.uniform(-3, 13, (rng.integers(3, 9), 2)) for _ in range(rng.integers(1, 4))]
        got = inside(polygons, shape=(12, 10))
        for x in range(12):
            for y in range(10):
                crossings = 0
                for polygon in polygons:
                    for (ax, ay), (bx, by) in zip(polygon, np.roll(polygon, -1, axis=0)):
                        if (ay <= y) != (by <= y):
                            crossings += ax + (y - ay) * (bx - ax) / (by - ay) <= x
                assert got[x, y] == crossings % 2


def test_label_maps_by_names(tmp_path: Path) -> None:
    regions = [
        ("parotid-l", placed([box((0.5, 0.5), (4.5, 4.5), 2)], OBLIQUE)),
        ("Brain Stem", placed([box((3.5, 3.5), (8.5, 8.5), 2)], OBLIQUE)),
        ("BODY", placed([box((-1, -1), (99, 99), 2)], OBLIQUE)),
    ]
    path = write_structures(tmp_path / "rs.dcm", regions)
    classes = ("background", "Parotid_L", "Chiasm", "BrainStem")
    labels, drawn = read_structures(path, classes=classes, shape=SHAPE, affine=OBLIQUE)
    expected = np.zeros(SHAPE, np.uint8)
    expected[1:5, 1:5, 2] = 1
    expected[4:9, 4:9, 2] = 3
    np.testing.assert_array_equal(labels, expected)
    assert drawn == (1, 3)
    with pytest.raises(UserError, match=r"no region is called as one of the classes \(Liver\); .*'parotid-l', 'Brain"):
        read_structures(path, classes=("background", "Liver"), shape=SHAPE, affine=OBLIQUE)
    away = OBLIQUE.copy()
    away[:3, 3] += 900
    with pytest.raises(UserError, match="none of its regions lies on the grid"):
        read_structures(path, classes=classes[:2], shape=SHAPE, affine=away)


def test_names_that_are_alike(tmp_path: Path) -> None:
    shape = placed([box((0.5, 0.5), (4.5, 4.5), 2)], OBLIQUE)
    other = placed([box((3.5, 3.5), (8.5, 8.5), 2)], OBLIQUE)
    path = write_structures(tmp_path / "rs.dcm", [("cord", shape), ("Cord", other)])
    labels, _ = read_structures(path, classes=("background", "Cord"), shape=SHAPE, affine=OBLIQUE)
    assert labels.sum() == 25
    assert labels[8, 8, 2] == 1
    with pytest.raises(UserError, match=r"2 regions are called like 'CORD' \('cord', 'Cord'\)"):
        read_structures(path, classes=("background", "CORD"), shape=SHAPE, affine=OBLIQUE)


def test_files_that_are_no_structure_sets(tmp_path: Path) -> None:
    path = write_structures(tmp_path / "rs.dcm", [("organ", placed([box((1, 1), (4, 4), 2)], OBLIQUE))])
    edit(path, lambda item: item.ROIContourSequence[0].ContourSequence[0].__setattr__("ContourData", [1, 2, 3, 4]))
    with pytest.raises(UserError, match=r"rs\.dcm: its contours can't be read"):
        read_structure_set(path)
    edit(path, lambda item: setattr(item, "Modality", "CT"))
    with pytest.raises(UserError, match=r"rs\.dcm: DICOM of modality CT, not RTSTRUCT"):
        read_structure_set(path)
    path.write_text("text")
    with pytest.raises(UserError, match=r"rs\.dcm: not a readable DICOM file"):
        read_structure_set(path)

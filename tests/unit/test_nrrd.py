"""NRRD files: where their voxels lie, channels, and what is wrong with them."""

from pathlib import Path
from typing import Any

import nrrd
import numpy as np
import pytest
import slicerio

from lampseg.data import read_label, read_volume
from lampseg.data.volume import file_id, read_geometry
from lampseg.errors import UserError
from tests.unit.format_folders import write_nrrd

SHAPE = (6, 5, 4)
AFFINE = np.array([[0, -1.5, 0, 30], [0.75, 0, 0, -20], [0, 0, 2.5, 10], [0, 0, 0, 1]])


def noise(shape: tuple[int, ...] = SHAPE) -> Any:
    return np.random.default_rng(0).normal(0, 50, shape).astype(np.int16)


@pytest.mark.parametrize("encoding", ["gzip", "raw", "bzip2", "ascii"])
@pytest.mark.parametrize("space", ["left-posterior-superior", "right-anterior-superior", "LAS"])
def test_reads_any_space_as_ras(tmp_path: Path, space: str, encoding: str) -> None:
    path = write_nrrd(tmp_path / "scan.nrrd", noise(), AFFINE, space=space, encoding=encoding)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.array[0], noise())
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-12)
    assert (volume.array.dtype, volume.header) == (np.float32, None)
    shape, affine = read_geometry(path)
    assert shape == (1, *SHAPE)
    np.testing.assert_array_equal(affine, volume.affine)


def test_a_known_header(tmp_path: Path) -> None:
    """Written out by hand, as PDDCA's files are: towards left, posterior and superior from (-250, -240, -100)."""
    head = (
        "NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: 2 3 4\n"
        "space directions: (0.76,0,0) (0,0.8,0) (0,0,1.25)\nkinds: domain domain domain\nendian: little\n"
        "encoding: raw\nspace origin: (-250,-240,-100)\n\n"
    )
    voxels = np.arange(24, dtype="<i2")
    (tmp_path / "img.nrrd").write_bytes(head.encode() + voxels.tobytes())
    volume = read_volume(tmp_path / "img.nrrd")
    assert volume.array[0, 1, 0, 0] == 1  # the first axis runs fastest
    assert volume.array[0, 0, 1, 0] == 2
    assert volume.array[0, 0, 0, 1] == 6
    expected = [[-0.76, 0, 0, 250], [0, -0.8, 0, 240], [0, 0, 1.25, -100], [0, 0, 0, 1]]
    np.testing.assert_allclose(volume.affine, expected)


def test_an_axis_without_direction_holds_channels(tmp_path: Path) -> None:
    array = noise((2, *SHAPE))
    path = write_nrrd(tmp_path / "scan.nrrd", array, AFFINE)
    np.testing.assert_array_equal(read_volume(path).array, array)
    assert read_geometry(path)[0] == (2, *SHAPE)
    last = np.moveaxis(array, 0, -1)
    directions = np.vstack([(np.diag([-1, -1, 1]) @ AFFINE[:3, :3]).T, np.full(3, np.nan)])
    fields = {"space directions": directions, "kinds": ["domain", "domain", "domain", "list"]}
    volume = read_volume(write_nrrd(tmp_path / "last.nrrd", last, AFFINE, **fields))
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, AFFINE)


def test_files_of_3d_slicer() -> None:
    """A scan, and a segmentation whose layers are an axis without direction, as 3D Slicer wrote them."""
    shipped = Path(slicerio.__file__).parent / "data"
    scan = read_volume(shipped / "CTChest4.nrrd")
    layers = slicerio.read_segmentation(str(shipped / "SegmentationOverlapping.seg.nrrd"))
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ scan.affine, layers["ijkToLPS"])
    stored = read_volume(shipped / "SegmentationOverlapping.seg.nrrd")
    np.testing.assert_array_equal(stored.array, layers["voxels"])
    np.testing.assert_array_equal(stored.affine, scan.affine)
    assert scan.shape == stored.shape == (128, 128, 34)


def test_a_detached_header(tmp_path: Path) -> None:
    nrrd.write(
        str(tmp_path / "scan.nhdr"), noise(), {"space": "LPS", "space directions": np.eye(3), "space origin": [0] * 3}
    )
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nhdr").array[0], noise())


def test_labels_are_read_and_held_against_the_scan(tmp_path: Path) -> None:
    labels = np.abs(noise()) % 3
    scan = read_volume(write_nrrd(tmp_path / "scan.nrrd", noise(), AFFINE))
    path = write_nrrd(tmp_path / "label.nrrd", labels.astype(np.float32), AFFINE, space="right-anterior-superior")
    np.testing.assert_array_equal(read_label(path, classes=3, like=scan), labels)
    moved = AFFINE + np.eye(4)[:, [3, 0, 1, 2]] * 0.1
    with pytest.raises(UserError, match=r"moved\.nrrd: affine .* differs from its image's"):
        read_label(write_nrrd(tmp_path / "moved.nrrd", labels, moved), classes=3, like=scan)
    with pytest.raises(UserError, match=r"two\.nrrd: 4D, shape 6x5x4x2, but a 3D label map is expected"):
        read_label(write_nrrd(tmp_path / "two.nrrd", np.stack([labels, labels]), AFFINE), classes=3, like=scan)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"space": None}, "`space` is not given, so left and right can't be told"),
        ({"space": "scanner-xyz"}, "`space` is scanner-xyz"),
        ({"space directions": None}, "has no `space directions`"),
        ({"space origin": None}, "has no `space origin`"),
        ({"space directions": np.diag([1.0, 1, 0])}, "the affine .* cannot be inverted"),
        ({"space directions": np.array([[1.0, 0, 0], [np.nan] * 3, [0, 0, 1]])}, "gives 2 directions in space"),
        ({"space units": ["m", "m", "m"]}, "`space units` is m, expected mm"),
    ],
)
def test_geometry_that_is_not_known(tmp_path: Path, header: dict[str, Any], message: str) -> None:
    space = header.pop("space", "left-posterior-superior")
    path = write_nrrd(tmp_path / "scan.nrrd", noise(), AFFINE, **header)
    text = path.read_bytes()
    line = b"" if space is None else f"space: {space}\n".encode()
    path.write_bytes(text.replace(b"space: left-posterior-superior\n", line or b"space dimension: 3\n"))
    for read in (read_volume, read_geometry):
        with pytest.raises(UserError, match=rf"scan\.nrrd: .*{message}"):
            read(path)


def test_units_in_mm_are_fine(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "scan.nrrd", noise(), AFFINE, **{"space units": ["mm", "mm", "mm"]})
    np.testing.assert_allclose(read_volume(path).affine, AFFINE)


def test_colours_and_other_dimensions_are_refused(tmp_path: Path) -> None:
    array = noise((3, *SHAPE))
    kinds = ["RGB-color", "domain", "domain", "domain"]
    with pytest.raises(UserError, match=r"voxels are RGB-color"):
        read_volume(write_nrrd(tmp_path / "colour.nrrd", array, AFFINE, kinds=kinds))
    nrrd.write(str(tmp_path / "flat.nrrd"), noise((6, 5)))
    with pytest.raises(UserError, match=r"flat\.nrrd: 2D, shape 6x5"):
        read_volume(tmp_path / "flat.nrrd")


@pytest.mark.parametrize("encoding", ["gzip", "raw"])
@pytest.mark.parametrize("kept", [4, 60, 0.9])
def test_files_that_are_cut_short(tmp_path: Path, kept: float, encoding: str) -> None:
    path = write_nrrd(tmp_path / "scan.nrrd", noise(), AFFINE, encoding=encoding)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept if kept > 1 else kept * len(content))])
    with pytest.raises(UserError, match=r"scan\.nrrd: (damaged or cut short|0D|`space` is|.*no `space)"):
        read_volume(path)


def test_flipped_bits_are_noticed(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "scan.nrrd", noise(), AFFINE)
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    with pytest.raises(UserError, match=r"damaged or cut short"):
        read_volume(path)


def test_npy_files_that_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scan.npy"
    for array, message in (
        (np.zeros((3, 4)), "2D, shape 3x4"),
        (np.zeros((0, 4, 4)), "holds no voxels"),
        (np.zeros((2, 2, 2), complex), "plain numbers"),
        (np.full((2, 2, 2), None, object), "damaged or cut short"),
    ):
        np.save(path, array, allow_pickle=True)
        for read in (read_volume, read_geometry):
            with pytest.raises(UserError, match=rf"scan\.npy: .*{message}"):
                read(path)
    np.save(path, np.zeros((4, 4, 4)))
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"scan\.npy: damaged or cut short"):
        read_volume(path)
    np.save(path, np.zeros((2, 3, 4, 5), np.float32))
    assert read_volume(path).array.shape == (2, 5, 4, 3)
    assert read_geometry(path)[0] == (2, 5, 4, 3)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/liver_0.nii.gz", "liver_0"),
        ("a/liver_0.nii", "liver_0"),
        ("a/scan.v2.nrrd", "scan.v2"),
        ("a/scan.npy", "scan"),
        ("0522c0001/img.nrrd", "0522c0001"),
        ("0522c0001/img_crp_v2.npy", "0522c0001"),
        ("a/img.nii.gz", "img"),
        ("a/slices", "slices"),
    ],
)
def test_the_name_of_a_case(path: str, name: str) -> None:
    assert file_id(Path(path)) == name

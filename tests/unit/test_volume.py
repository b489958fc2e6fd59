"""One NIfTI file -> array and affine: every way a file can be wrong, and label maps written whole or not at all."""

import gzip
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lampseg.data import Volume, read_label, read_volume, write_labels
from lampseg.data.volume import read_geometry
from lampseg.errors import UserError
from tests.limits import no_space_beyond

AFFINE = np.array([[-0.8, 0.1, 0, 12], [0.05, -0.9, 0.2, -30], [0, 0.1, 2.5, 7.5], [0, 0, 0, 1]])
SHAPE = (9, 8, 7)


def noise(shape: tuple[int, ...] = SHAPE) -> Any:
    return np.random.default_rng(0).normal(0, 100, shape).astype(np.float32)


def organs(dtype: Any = np.uint8) -> Any:
    return np.random.default_rng(1).integers(0, 3, SHAPE).astype(dtype)


def save(path: Path, array: Any, affine: Any = AFFINE, *, kind: Any = nib.Nifti1Image) -> Path:
    nib.save(kind(array, affine), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_reads_a_volume(tmp_path: Path, suffix: str, kind: Any, dtype: Any) -> None:
    array = noise().astype(dtype)
    volume = read_volume(save(tmp_path / f"scan{suffix}", array, kind=kind))
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array[0], array.astype(np.float32))
    np.testing.assert_allclose(volume.affine, AFFINE, atol=1e-5)
    np.testing.assert_allclose(volume.spacing, np.linalg.norm(AFFINE[:3, :3], axis=0), atol=1e-5)


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.zeros(SHAPE, np.int16), AFFINE)
    image.header.set_slope_inter(2, -1024)
    image = nib.Nifti1Image(np.full(SHAPE, 976.0), AFFINE, image.header)
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "ct.nii.gz")
    np.testing.assert_allclose(read_volume(tmp_path / "ct.nii.gz").array, 976, atol=0.5)


def test_a_gz_name_on_an_uncompressed_file_is_read_for_what_it_is(tmp_path: Path) -> None:
    plain = save(tmp_path / "scan.nii", noise())
    plain.rename(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "scan.nii.gz").array[0], noise())


def test_a_trailing_single_dimension_is_dropped(tmp_path: Path) -> None:
    assert read_volume(save(tmp_path / "scan.nii.gz", noise((*SHAPE, 1, 1)))).array.shape == (1, *SHAPE)


def test_channels_come_first(tmp_path: Path) -> None:
    array = noise((*SHAPE, 3))
    path = save(tmp_path / "scan.nii.gz", array)
    volume = read_volume(path)
    assert volume.shape == SHAPE
    np.testing.assert_array_equal(volume.array, np.moveaxis(array, -1, 0))
    assert read_geometry(path)[0] == (3, *SHAPE)


@pytest.mark.parametrize("shape", [(9, 8), (9, 8, 7, 1, 2)])
def test_other_dimensions_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match=r"scan\.nii\.gz: .*but a 3D volume"):
        read_volume(save(tmp_path / "scan.nii.gz", noise(shape)))


def test_a_label_map_has_one_channel(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scan\.nii\.gz: 4D, .*but a 3D label map is expected"):
        read_label(save(tmp_path / "scan.nii.gz", noise((*SHAPE, 2))), classes=2)


def test_an_empty_dimension_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shape 9x0x7 holds no voxels"):
        read_volume(save(tmp_path / "scan.nii.gz", np.zeros((9, 0, 7), np.float32)))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"scan\.nii\.gz: no such file"):
        read_volume(tmp_path / "scan.nii.gz")
    with pytest.raises(UserError, match="no such file"):
        read_volume(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"P6 512 512 255" * 100, gzip.compress(b"not an image" * 100, mtime=0)]
)
def test_not_nifti(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(content)
    with pytest.raises(UserError, match=r"scan\.nii\.gz: not a NIfTI file"):
        read_volume(tmp_path / "scan.nii.gz")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.25])
def test_a_file_cut_short(tmp_path: Path, suffix: str, share: float) -> None:
    path = save(tmp_path / f"scan{suffix}", noise())
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    for read in (read_volume, lambda p: read_label(p, classes=3)):
        with pytest.raises(UserError, match=r"scan\.nii.*: damaged or cut short .*download it again"):
            read(path)


def test_cut_within_the_checksum_or_with_flipped_bits(tmp_path: Path) -> None:
    """The voxels are all there, and only the gzip checksum tells that they are not to be trusted."""
    path = save(tmp_path / "scan.nii.gz", noise())
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with pytest.raises(UserError, match="damaged or cut short"):
        read_volume(path)
    path.write_bytes(content[:-8] + bytes([content[-8] ^ 1]) + content[-7:])
    with pytest.raises(UserError, match="damaged or cut short"):
        read_volume(path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers(tmp_path: Path, bad: float) -> None:
    array = noise()
    array[1, 2, 3] = array[0, 0, 0] = bad
    with pytest.raises(UserError, match=r"scan\.nii\.gz: 2 of 504 voxels are NaN or infinite"):
        read_volume(save(tmp_path / "scan.nii.gz", array))


def test_colour_voxels_are_refused(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
    with pytest.raises(UserError, match="one grey value"):
        read_volume(save(tmp_path / "scan.nii.gz", array))


@pytest.mark.parametrize("column", [np.zeros(3), np.array([0.8, -0.05, 0]), np.array([np.nan, 0, 1])])
def test_an_affine_without_inverse(tmp_path: Path, column: Any) -> None:
    image = nib.Nifti1Image(noise(), AFFINE)
    affine = AFFINE.copy()
    affine[:3, 1] = column
    image.header["srow_x"], image.header["srow_y"], image.header["srow_z"] = affine[:3]
    (tmp_path / "scan.nii").write_bytes(
        image.header.binaryblock + bytes(4) + image.get_fdata(dtype=np.float32).tobytes("F")
    )
    with pytest.raises(UserError, match=r"scan\.nii: (the affine .* cannot be inverted|damaged)"):
        read_volume(tmp_path / "scan.nii")


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
def test_reads_labels_of_any_type_that_hold_integers(tmp_path: Path, dtype: Any) -> None:
    label = read_label(save(tmp_path / "label.nii.gz", organs(dtype)), classes=3)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, organs())


@pytest.mark.parametrize(("value", "named"), [(0.5, "0.5"), (np.nan, "nan"), (1.9, "1.9")])
def test_label_values_that_are_no_integers(tmp_path: Path, value: float, named: str) -> None:
    array = organs(np.float32)
    array[0, 0, 0] = value
    with pytest.raises(UserError, match=rf"label\.nii\.gz: 1 voxels .*\({named}\).*nearest"):
        read_label(save(tmp_path / "label.nii.gz", array), classes=3)


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_label_values_outside_the_classes(tmp_path: Path, dtype: Any) -> None:
    array = organs(dtype)
    array[0, 0, :3] = [7, -1, 7]
    with pytest.raises(UserError, match=r"3 voxels hold -1, 7, but dataset\.json names the classes 0 to 2"):
        read_label(save(tmp_path / "label.nii.gz", array), classes=3)


def test_a_label_on_another_grid(tmp_path: Path) -> None:
    image = Volume(noise()[None], AFFINE)
    moved, turned, near = AFFINE.copy(), AFFINE.copy(), AFFINE.copy()
    moved[0, 3] += 0.03
    turned[0, 1] += 0.003
    near[0, 3] += 0.02
    near[0, 1] += 0.0005
    assert read_label(save(tmp_path / "near.nii.gz", organs(), near), classes=3, like=image).shape == SHAPE
    for other in (moved, turned):
        with pytest.raises(UserError, match=r"other\.nii\.gz: affine .* differs from its image's"):
            read_label(save(tmp_path / "other.nii.gz", organs(), other), classes=3, like=image)
    with pytest.raises(UserError, match=r"flat\.nii\.gz: label map of shape 9x8x6, but its image has 9x8x7"):
        read_label(save(tmp_path / "flat.nii.gz", organs()[:, :, :6]), classes=3, like=image)


@pytest.mark.parametrize("name", ["a.nii.gz", "new/folder/a.nii"])
@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 9), (np.int64, 300)])
def test_labels_round_trip(tmp_path: Path, name: str, dtype: Any, top: int) -> None:
    labels = organs().astype(dtype)
    labels[0, 0, 0] = top
    write_labels(tmp_path / name, labels, AFFINE)
    image = nib.load(tmp_path / name)
    assert image.get_data_dtype() == (np.uint16 if top > 255 else np.uint8)
    np.testing.assert_array_equal(np.asarray(image.dataobj), labels)
    np.testing.assert_allclose(image.affine, AFFINE, atol=1e-5)
    assert [path.name for path in (tmp_path / name).parent.iterdir()] == [Path(name).name]


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_prediction_states_the_geometry_as_the_scan_does(tmp_path: Path, kind: Any) -> None:
    """Some readers take the qform, others the sform: both are kept, even where they disagree; names are not."""
    scan = kind(noise(), AFFINE)
    scan.header.set_slope_inter(2, 5)
    scan.set_qform(np.diag([-2.0, 2.0, 3.0, 1.0]), code=1)
    scan.set_sform(AFFINE, code=2)
    scan.header["descrip"] = b"Jane Doe"
    scan.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Jane Doe"))
    nib.save(scan, tmp_path / "scan.nii")
    volume = read_volume(tmp_path / "scan.nii")
    write_labels(tmp_path / "out.nii", organs(), volume.affine, header=volume.header)
    written = nib.load(tmp_path / "out.nii")
    assert type(written) is kind
    for form in ("get_qform", "get_sform"):
        expected, got = getattr(scan, form)(coded=True), getattr(written, form)(coded=True)
        assert expected[1] == got[1]
        np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
    np.testing.assert_array_equal(np.asarray(written.dataobj), organs())
    assert b"Jane" not in (tmp_path / "out.nii").read_bytes()


def test_other_names_than_nifti_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"out\.png: NIfTI files are named"):
        write_labels(tmp_path / "out.png", organs(), AFFINE)


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "out.nii").write_bytes(b"old")
    with no_space_beyond(200), pytest.raises(UserError, match=r"out\.nii: cannot be written .*free disk space"):
        write_labels(tmp_path / "out.nii", organs(), AFFINE)
    assert [path.name for path in tmp_path.iterdir()] == ["out.nii"]
    assert (tmp_path / "out.nii").read_bytes() == b"old"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write_labels(tmp_path / "file" / "out.nii.gz", organs(), AFFINE)

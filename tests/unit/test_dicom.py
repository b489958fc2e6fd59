"""DICOM series -> volumes: the known affine and values, as SimpleITK reads them, and every series that is refused."""

import shutil
import sys
from pathlib import Path
from typing import Any

import gdcm
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from lampseg.data.case_files import image_geometry, read_image
from lampseg.data.dicom.series import dicom_geometry, is_dicom, read_dicom, read_dicom_series
from lampseg.data.volume import write_labels
from lampseg.errors import UserError
from tests.dicom_files import NAME, affine_of, edit, tilted, uid, write_enhanced, write_series

SHAPE = (7, 5, 6)
SPACING = (0.7, 1.3, 2.5)
ORIGIN = (-31.25, 12.5, 104.0)
FEET_FIRST = np.array([[-1, 0, 0], [0, 1, 0], [0, 0, -1]])
SAGITTAL = np.array([[0, 1, 0], [0, 0, -1], [-1, 0, 0]])


def values(dtype: Any = np.uint16) -> Any:
    return np.random.default_rng(0).integers(0, 3000, SHAPE).astype(dtype)


def write(folder: Path, **options: Any) -> list[Path]:
    return write_series(folder, values(), spacing=SPACING, origin=ORIGIN, **options)


@pytest.mark.parametrize("directions", [np.eye(3), FEET_FIRST, SAGITTAL, tilted((20, -15, 40))])
@pytest.mark.parametrize("order", [None, [5, 4, 3, 2, 1, 0], [3, 0, 5, 1, 4, 2]])
def test_values_and_affine_are_those_written_and_those_simpleitk_reads(
    tmp_path: Path, directions: Any, order: Any
) -> None:
    write(tmp_path, directions=directions, order=order, slope=2.0)
    volume = read_dicom(tmp_path)
    np.testing.assert_array_equal(volume.array[0], values() * 2.0 - 1024)
    np.testing.assert_allclose(volume.affine, affine_of(directions, SPACING, ORIGIN), atol=1e-5)

    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path)))
    other = reader.Execute()
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(other).T, volume.array[0])
    columns = np.reshape(other.GetDirection(), (3, 3)) * other.GetSpacing()
    expected = np.diag([-1, -1, 1]) @ np.column_stack([columns, other.GetOrigin()])
    np.testing.assert_allclose(volume.affine[:3], expected, atol=1e-4)


def test_results_lie_where_simpleitk_sees_the_series(tmp_path: Path) -> None:
    write(tmp_path / "scan", directions=tilted((20, -15, 40)))
    volume = read_dicom(tmp_path / "scan")
    labels = (volume.array[0] > 500).astype(np.uint8)
    write_labels(tmp_path / "out.nii.gz", labels, volume.affine, header=volume.header)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "scan")))
    scan, written = reader.Execute(), SimpleITK.ReadImage(tmp_path / "out.nii.gz")
    for index in ((0, 0, 0), (6, 0, 0), (0, 4, 0), (0, 0, 5), (3, 2, 1)):
        there = written.TransformPhysicalPointToIndex(scan.TransformIndexToPhysicalPoint(index))
        assert there == index
        assert written[there] == (scan[index] > 500)


def test_headers_alone_give_shape_and_affine(tmp_path: Path) -> None:
    for path in write(tmp_path, directions=tilted((5, 0, 9))):
        edit(path, lambda item: item.__delattr__("PixelData"))
    shape, affine = dicom_geometry(tmp_path)
    assert shape == (1, *SHAPE)
    np.testing.assert_allclose(affine, affine_of(tilted((5, 0, 9)), SPACING, ORIGIN), atol=1e-5)
    with pytest.raises(UserError, match=r"IM11_000\.dcm: its pixels can't be read"):
        read_dicom(tmp_path)


def test_signed_values(tmp_path: Path) -> None:
    stored = values(np.int16) - 2000
    write_series(tmp_path, stored.astype(np.int16), intercept=0.0)
    np.testing.assert_array_equal(read_dicom(tmp_path).array[0], stored)


def test_each_slice_has_its_own_slope(tmp_path: Path) -> None:
    """As in PET."""

    def scale(item: Any, index: int) -> None:
        item.RescaleSlope = index + 0.5

    write(tmp_path, change=scale, intercept=0.0)
    np.testing.assert_allclose(read_dicom(tmp_path).array[0], values() * (np.arange(6) + 0.5))


def test_gantry_tilt_makes_a_sheared_affine(tmp_path: Path) -> None:
    write(tmp_path, shear=(0, 0.9, 0))
    affine = read_dicom(tmp_path).affine
    np.testing.assert_allclose(affine[:3, 2], [0, -0.9, 2.5], atol=1e-6)
    np.testing.assert_allclose(affine[:3, 0], [-0.7, 0, 0], atol=1e-6)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless, JPEGLosslessSV1])
def test_compressed_pixels(tmp_path: Path, syntax: str) -> None:
    stored = np.random.default_rng(1).integers(0, 3000, (64, 48, 3)).astype(np.uint16)
    for path in write_series(tmp_path, stored):
        transcode(path, syntax)
    np.testing.assert_array_equal(read_dicom(tmp_path).array[0], stored - 1024.0)


def transcode(path: Path, syntax: str) -> None:
    """Compresses a file's pixels, without loss."""
    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


@pytest.mark.parametrize(
    "name",
    [
        "693_J2KI.dcm",
        "CT_small.dcm",
        "J2K_pixelrep_mismatch.dcm",
        "MR_small_RLE.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_jp2klossless.dcm",
    ],
)
def test_files_of_real_scanners(name: str, tmp_path: Path) -> None:
    """pydicom brings them along: single slices in many encodings."""
    path = tmp_path / name
    shutil.copy(Path(pydicom.__file__).parent / "data" / "test_files" / name, path)
    volume, other = read_dicom(path), SimpleITK.ReadImage(path)
    np.testing.assert_allclose(volume.array[0], SimpleITK.GetArrayFromImage(other).T, atol=1e-3)
    np.testing.assert_allclose(np.diag([-1, -1, 1]) @ volume.affine[:3, 3], other.GetOrigin(), atol=1e-3)


def test_pixels_that_no_decoder_reads(tmp_path: Path) -> None:
    def as_video(item: Any, _: int) -> None:
        item.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
        item.PixelData = encapsulate([b"video"])

    write(tmp_path, change=as_video)
    with pytest.raises(UserError, match=r"IM11_000\.dcm: its pixels can't be read .*uncompressed"):
        read_dicom(tmp_path)


def test_multi_frame(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "a" / "enhanced", values(), spacing=SPACING, origin=ORIGIN)
    for source in (path, path.parent):
        volume = read_dicom(source)
        np.testing.assert_allclose(volume.array[0], values() * np.arange(1.0, 7) - 10)
        np.testing.assert_allclose(volume.affine, affine_of(np.eye(3), SPACING, ORIGIN), atol=1e-5)


def test_multi_frame_without_positions_is_refused(tmp_path: Path) -> None:
    path = write_enhanced(tmp_path / "old.dcm", values(), spacing=SPACING, origin=ORIGIN)
    edit(path, lambda item: item.__delattr__("PerFrameFunctionalGroupsSequence"))
    with pytest.raises(UserError, match=r"old\.dcm: 6 frames, but no position for each"):
        read_dicom(path)


def test_a_single_slice(tmp_path: Path) -> None:
    write_series(tmp_path, values()[:, :, :1], spacing=SPACING)
    assert read_dicom(tmp_path).array.shape == (1, 7, 5, 1)
    assert read_dicom(tmp_path).spacing[2] == 2.5


def test_several_series_in_one_folder(tmp_path: Path) -> None:
    first, second = write(tmp_path, series=11), write_series(tmp_path, values()[:, :, :3] + 1, series=12)
    write_series(tmp_path, values(), series=13, change=lambda item, _: setattr(item, "Modality", "RTDOSE"))
    scout = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    write_series(tmp_path, values(), series=14, change=lambda item, _: setattr(item, "ImageType", scout))
    found = read_dicom_series(tmp_path)
    assert [(s.uid, s.number, s.description, len(s.files)) for s in found] == [
        (uid(11), 11, "neck", 6),
        (uid(12), 12, "neck", 3),
    ]
    with pytest.raises(UserError, match=r"holds 2 DICOM series, one is expected: CT series number 11 .*12"):
        read_dicom(tmp_path)
    assert read_dicom(tmp_path, series=uid(12)).array.shape == (1, 7, 5, 3)
    assert read_dicom(second[1]).array.shape == (1, 7, 5, 3)
    np.testing.assert_array_equal(read_dicom(first[3]).array[0], values() - 1024.0)
    with pytest.raises(UserError, match=r"IM13_000\.dcm: DICOM of modality RTDOSE, no image"):
        read_dicom(tmp_path / "IM13_000.dcm")
    with pytest.raises(UserError, match="holds 2 DICOM series"):
        read_dicom(tmp_path, series="1.2.3")


def test_a_missing_slice(tmp_path: Path) -> None:
    write(tmp_path)[2].unlink()
    with pytest.raises(UserError, match=r"number 11.*: 1 slice\(s\) missing, .*IM11_001.* and .*IM11_003.*5 mm apart"):
        read_dicom(tmp_path)


def test_uneven_distances(tmp_path: Path) -> None:
    def shift(item: Any, index: int) -> None:
        item.ImagePositionPatient[2] += {2: 0.3, 3: 0.01}.get(index, 0)

    write(tmp_path, change=shift)
    with pytest.raises(UserError, match=r"IM11_002\.dcm lies 0\.3 mm from where slices at even distances"):
        read_dicom(tmp_path)


def test_small_rounding_of_positions_is_fine(tmp_path: Path) -> None:
    def shift(item: Any, index: int) -> None:
        item.ImagePositionPatient[2] += 0.05 * (index % 2)

    write(tmp_path, change=shift)
    assert read_dicom(tmp_path).spacing[2] == pytest.approx(2.5, abs=0.02)


def test_two_time_points(tmp_path: Path) -> None:
    write(tmp_path, change=lambda item, _: setattr(item, "AcquisitionNumber", 1))
    second = write(tmp_path / "more", change=lambda item, _: setattr(item, "AcquisitionNumber", 2))
    for number, path in enumerate(second):
        edit(path, lambda item, number=number: setattr(item, "SOPInstanceUID", uid(99, number + 1)))
    with pytest.raises(UserError, match=r"6 position\(s\) more than once.*they differ in AcquisitionNumber\); keep"):
        read_dicom(tmp_path)


def test_a_copied_file_counts_once(tmp_path: Path) -> None:
    path = write(tmp_path)[3]
    (tmp_path / "copy.dcm").write_bytes(path.read_bytes())
    np.testing.assert_array_equal(read_dicom(tmp_path).array[0], values() - 1024.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: setattr(i, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1]), "has another orientation, unlike"),
        (lambda i: setattr(i, "PixelSpacing", [2, 2]), r"has pixels of \(2\.0, 2\.0\) mm"),
        (lambda i: setattr(i, "Rows", 4), r"has 7x4 pixels, not 7x5"),
        (lambda i: i.__delattr__("ImagePositionPatient"), "ImagePositionPatient is missing"),
        (lambda i: i.__delattr__("PixelSpacing"), "PixelSpacing is missing"),
        (lambda i: setattr(i, "PixelSpacing", [0, 1]), "PixelSpacing is not above 0"),
        (
            lambda i: setattr(i, "ImageOrientationPatient", [1, 0, 0, 0.6, 0.8, 0]),
            "ImageOrientationPatient is not two directions at a right angle",
        ),
        (lambda i: setattr(i, "SamplesPerPixel", 3), "colour pixels"),
    ],
)
def test_slices_that_do_not_fit_in(tmp_path: Path, change: Any, message: str) -> None:
    edit(write(tmp_path)[4], change)
    with pytest.raises(UserError, match=rf"IM11_004\.dcm: {message}"):
        dicom_geometry(tmp_path)


def test_pixels_cut_short(tmp_path: Path) -> None:
    path = write(tmp_path)[1]
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"IM11_001\.dcm: its pixels can't be read"):
        read_dicom(tmp_path)


def test_what_is_dicom(tmp_path: Path) -> None:
    write(tmp_path / "scan")
    (tmp_path / "scan" / "IM11_000.dcm").rename(tmp_path / "scan" / "IM0")
    (tmp_path / "scan" / ".hidden.dcm").write_bytes(b"other")
    (tmp_path / "nifti").mkdir()
    (tmp_path / "nifti" / "a.nii.gz").write_bytes(b"\0" * 128 + b"DICM")
    (tmp_path / "nifti" / "notes").write_text("text")
    assert is_dicom(tmp_path / "scan")
    assert is_dicom(tmp_path)
    assert is_dicom(tmp_path / "scan" / "IM0")
    assert not is_dicom(tmp_path / "nifti")
    assert not is_dicom(tmp_path / "nifti" / "notes")
    assert not is_dicom(tmp_path / "none")
    assert read_dicom(tmp_path / "scan" / "IM0").shape == SHAPE
    with pytest.raises(UserError, match="nifti: no DICOM image series in it"):
        read_dicom(tmp_path / "nifti")
    (tmp_path / "scan" / "bad.dcm").write_text("text")
    with pytest.raises(UserError, match=r"bad\.dcm: not a readable DICOM file"):
        read_dicom(tmp_path / "scan")


def test_a_case_may_be_dicom(tmp_path: Path) -> None:
    paths = write(tmp_path)
    for images in ((tmp_path,), (paths[0],)):
        np.testing.assert_array_equal(read_image(images).array[0], values() - 1024.0)
        assert image_geometry(images)[0] == (1, *SHAPE)


def test_without_pydicom_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)[0]
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UserError, match=r"pip install 'lampseg\[dicom\]'"):
        read_dicom(path)


def test_headers_that_are_kept_do_not_name_the_patient(tmp_path: Path) -> None:
    from lampseg.data.dicom.files import header_of

    path = write(tmp_path)[0]
    assert NAME.encode() in path.read_bytes()
    assert NAME not in str(header_of(path))
    assert "PatientID" not in header_of(path)

"""Writes small synthetic DICOM series and structure sets, with pydicom, for the tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian, RTStructureSetStorage
from scipy.spatial.transform import Rotation

NAME = "Doe^Jane"
PATIENT = "PID-4711"


def uid(*parts: int) -> str:
    """The same for the same numbers."""
    return "1.2.826.0.1.3680043.8.498." + ".".join(str(part) for part in parts)


def tilted(degrees: Sequence[float]) -> Any:
    """Directions of columns, rows and slices, as rows of a matrix: axial ones, turned about x, y and z."""
    return Rotation.from_euler("xyz", degrees, degrees=True).as_matrix().T


def affine_of(directions: Any, spacing: Sequence[float], origin: Sequence[float]) -> Any:
    """Voxel index -> mm, RAS+, of a series written with these values (which are LPS)."""
    affine = np.eye(4)
    affine[:3, :3] = (np.asarray(directions) * np.asarray(spacing)[:, None]).T
    affine[:3, 3] = origin
    return np.diag([-1, -1, 1, 1]) @ affine


def dataset(kind: str, *, series: int, instance: int) -> FileDataset:
    """A file of a patient with a name."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = kind
    meta.MediaStorageSOPInstanceUID = uid(series, instance + 1)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = kind, meta.MediaStorageSOPInstanceUID
    found.PatientName, found.PatientID = NAME, PATIENT
    found.StudyInstanceUID, found.SeriesInstanceUID = uid(1), uid(series)
    found.FrameOfReferenceUID = uid(7)
    found.SeriesNumber, found.InstanceNumber = series, instance + 1
    return found


def write_series(
    folder: Path,
    stored: Any,
    *,
    directions: Any = None,
    spacing: Sequence[float] = (1.0, 1.0, 1.0),
    origin: Sequence[float] = (0.0, 0.0, 0.0),
    series: int = 11,
    slope: float = 1.0,
    intercept: float = -1024.0,
    order: Sequence[int] | None = None,
    syntax: str | None = None,
    shear: Sequence[float] = (0.0, 0.0, 0.0),
    change: Any = None,
) -> list[Path]:
    """Writes `stored` uint16 or int16 (columns, rows, slices), one file a slice; in LPS, `origin` is the first voxel's.

    Args:
        order: which slice gets the first file name and instance number, the second, ...
        shear: added to the position with every slice, in mm (gantry tilt).
        change: called with each slice's dataset and index before it is written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    directions = np.eye(3) if directions is None else np.asarray(directions)
    count = stored.shape[2]
    paths = []
    for instance, index in enumerate(range(count) if order is None else order):
        item = dataset(CTImageStorage, series=series, instance=instance)
        item.Modality, item.SeriesDescription, item.ImageType = "CT", "neck", ["ORIGINAL", "PRIMARY", "AXIAL"]
        place = np.asarray(origin) + index * (spacing[2] * directions[2] + np.asarray(shear))
        item.ImagePositionPatient = [f"{x:.9g}" for x in place]
        item.ImageOrientationPatient = [f"{x:.9g}" for x in directions[:2].ravel()]
        item.PixelSpacing = [spacing[1], spacing[0]]  # between rows first
        item.SliceThickness = spacing[2]
        item.RescaleSlope, item.RescaleIntercept = slope, intercept
        set_pixels(item, stored[:, :, index].T)
        if syntax is not None:
            item.compress(syntax)
        if change is not None:
            change(item, index)
        path = folder / f"IM{series}_{instance:03d}.dcm"
        item.save_as(path)
        paths.append(path)
    return paths


def set_pixels(item: Any, pixels: Any) -> None:
    """(rows, columns) or (frames, rows, columns), of 16 bits."""
    item.Rows, item.Columns = pixels.shape[-2:]
    item.SamplesPerPixel, item.PhotometricInterpretation = 1, "MONOCHROME2"
    item.BitsAllocated = item.BitsStored = 16
    item.HighBit, item.PixelRepresentation = 15, int(pixels.dtype.kind == "i")
    item.PixelData = np.ascontiguousarray(pixels).tobytes()


def write_enhanced(path: Path, stored: Any, *, spacing: Sequence[float], origin: Sequence[float]) -> Path:
    """One multi-frame file, its frames from the last slice to the first, each with a slope of its own."""
    item = dataset(EnhancedCTImageStorage, series=21, instance=0)
    item.Modality, item.ImageType = "CT", ["ORIGINAL", "PRIMARY"]
    count = stored.shape[2]
    set_pixels(item, np.moveaxis(stored[:, :, ::-1], -1, 0).transpose(0, 2, 1))
    item.NumberOfFrames = count
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [spacing[1], spacing[0]], spacing[2]
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([orientation])
    item.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for index in reversed(range(count)):
        frame, place, values = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [origin[0], origin[1], origin[2] + index * spacing[2]]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = index + 1, -10, "HU"
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = Items([place]), Items([values])
        frames.append(frame)
    item.PerFrameFunctionalGroupsSequence = Items(frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    item.save_as(path)
    return path


def write_structures(
    path: Path, regions: Sequence[tuple[str, Sequence[Any]]], *, series: int = 11, kind: str = "CLOSED_PLANAR"
) -> Path:
    """Regions by name, each a list of contours (points, 3) in mm, RAS+."""
    item = dataset(RTStructureSetStorage, series=900 + series, instance=0)
    item.Modality = "RTSTRUCT"
    referenced, study, frame = Dataset(), Dataset(), Dataset()
    referenced.SeriesInstanceUID = uid(series)
    study.RTReferencedSeriesSequence = Items([referenced])
    frame.FrameOfReferenceUID, frame.RTReferencedStudySequence = uid(7), Items([study])
    item.ReferencedFrameOfReferenceSequence = Items([frame])
    rois, drawn = [], []
    for number, (name, contours) in enumerate(regions, start=1):
        roi, shapes = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        rois.append(roi)
        shapes.ReferencedROINumber = number
        items = []
        for contour in contours:
            one = Dataset()
            one.ContourGeometricType, one.NumberOfContourPoints = kind, len(contour)
            one.ContourData = [f"{x:.8g}" for x in (np.asarray(contour) * (-1, -1, 1)).ravel()]
            items.append(one)
        shapes.ContourSequence = Items(items)
        drawn.append(shapes)
    item.StructureSetROISequence, item.ROIContourSequence = Items(rois), Items(drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    item.save_as(path)
    return path


def edit(path: Path, change: Any) -> None:
    """Changes a file that was written."""
    item = pydicom.dcmread(path)
    change(item)
    item.save_as(path)

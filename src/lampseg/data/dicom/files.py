"""DICOM files on disk -> their headers, and the series they belong to; nothing that names a patient is read."""

import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lampseg.errors import UserError

NOT_READABLE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    struct.error,
)
"""What pydicom and its decoders raise for damaged or unusual files."""

_TAGS = (
    "SOPInstanceUID",
    "Modality",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesDescription",
    "ImageType",
    "FrameOfReferenceUID",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "SpacingBetweenSlices",
    "Rows",
    "Columns",
    "NumberOfFrames",
    "SamplesPerPixel",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "AcquisitionNumber",
    "TemporalPositionIdentifier",
    "EchoNumbers",
)
_NO_SCANS = ("RTDOSE", "RTIMAGE", "SEG", "PR", "KO", "SR")  # have pixels, or may have, but are not what is segmented
_OTHER_FORMATS = (".nii", ".nii.gz", ".nrrd", ".npy", ".npz", ".json", ".csv", ".tsv", ".yaml", ".txt", ".md")


@dataclass(frozen=True)
class DicomSeries:
    """The files of one image series. Nothing of it names the patient, unless somebody typed it into `description`."""

    uid: str
    number: int | None
    description: str
    modality: str
    frame_of_reference: str
    """UID of the space that positions refer to; empty if unknown."""
    files: tuple[Path, ...]

    def __str__(self) -> str:
        number = "without number" if self.number is None else f"number {self.number}"
        return f"{self.modality or 'image'} series {number} ({self.description!r}, {len(self.files)} files)"


def is_dicom(path: Path) -> bool:
    """Whether a path is a DICOM file (by its name `.dcm` or its first bytes), or a folder that holds one at any depth.

    Needs no library.
    """
    path = Path(path)
    if path.is_dir():
        return any(True for _ in dicom_files(path))
    return path.is_file() and _is_dicom_file(path)


def dicom_files(folder: Path) -> Iterator[Path]:
    """The DICOM files below a folder, sorted; none within hidden folders."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.is_file() and _is_dicom_file(path):
            yield path


def read_dicom_series(folder: Path, *, faults: list[str] | None = None) -> tuple[DicomSeries, ...]:
    """The image series below a folder, by the folder of their first file and their number.

    Localizers, dose, structure sets, segmentations and reports are no image series and are left out.

    Args:
        faults: gets the messages of files that can't be read, which then are left out; None raises the first.

    Raises:
        UserError: the folder holds no image series; a DICOM file in it can't be read; pydicom is missing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a folder of DICOM files")
    series = _grouped(dicom_files(folder), faults)
    if not series:
        raise UserError(f"{folder}: no DICOM image series in it; give the folder that the scanner's images lie in")
    return series


def series_of(path: Path, *, series: str | None = None) -> DicomSeries:
    """The series that a path means: the only one below a folder, or all files of a file's series in its folder.

    Args:
        series: SeriesInstanceUID, where a folder holds several.

    Raises:
        UserError: as `read_dicom_series`; a folder holds several series and `series` names none of them.
    """
    path = Path(path)
    if path.is_dir():
        found = read_dicom_series(path)
        chosen = [each for each in found if each.uid == series] if series is not None else list(found)
        if len(chosen) == 1:
            return chosen[0]
        raise UserError(
            f"{path}: holds {len(found)} DICOM series, one is expected: {'; '.join(map(str, found[:5]))}"
            f"{' and more' if len(found) > 5 else ''}; give one file of the series that is meant, which stands for all "
            "of its files, or a folder for each series"
        )
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    uid = text_of(header_of(path), "SeriesInstanceUID")
    beside = (file for file in sorted(path.parent.iterdir()) if file.is_file() and _is_dicom_file(file))
    found = _grouped(file for file in beside if text_of(header_of(file), "SeriesInstanceUID") == uid)
    if not found:
        modality = text_of(header_of(path), "Modality") or "unknown"
        raise UserError(f"{path}: DICOM of modality {modality}, no image of a scan; give a file of the image series")
    return found[0]


def header_of(file: Path) -> Any:
    """The few elements of a file's header that say what its voxels are and where; pydicom's Dataset.

    Raises:
        UserError: no DICOM file, or damaged; pydicom is missing.
    """
    state = file.stat()
    return _header(file, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8192)
def _header(file: Path, changed: int, size: int) -> Any:
    return read_elements(file, _TAGS)


def read_elements(file: Path, tags: Sequence[str]) -> Any:
    """pydicom's Dataset of a file with these elements only, without its pixels.

    Raises:
        UserError: as `header_of`.
    """
    pydicom = _pydicom()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they would quote what the file says
            return pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(tags))
    except (pydicom.errors.InvalidDicomError, *NOT_READABLE) as error:
        raise UserError(
            f"{file}: not a readable DICOM file ({type(error).__name__}); export it again or remove it"
        ) from error


def text_of(header: Any, name: str) -> str:
    """An element as text; empty if it is absent or empty."""
    value = header.get(name)
    return "" if value is None else str(value)


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise UserError("DICOM files need pydicom: pip install 'lampseg[dicom]'") from error
    return pydicom


def _is_dicom_file(path: Path) -> bool:
    name = path.name.lower()
    if name.startswith(".") or name == "dicomdir" or name.endswith(_OTHER_FORMATS):
        return False
    if name.endswith(".dcm"):
        return True
    try:
        with open(path, "rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _grouped(files: Iterator[Path], faults: list[str] | None = None) -> tuple[DicomSeries, ...]:
    members: dict[str, list[Path]] = {}
    heads: dict[str, Any] = {}
    _pydicom()
    for file in files:
        try:
            header = header_of(file)
        except UserError as error:
            if faults is None:
                raise
            faults.append(str(error))
            continue
        localizer = "LOCALIZER" in text_of(header, "ImageType").upper()
        if "Rows" in header and not localizer and text_of(header, "Modality") not in _NO_SCANS:
            uid = text_of(header, "SeriesInstanceUID")
            heads.setdefault(uid, header)
            members.setdefault(uid, []).append(file)
    found = [
        DicomSeries(
            uid,
            None if header.get("SeriesNumber") is None else int(header.SeriesNumber),
            text_of(header, "SeriesDescription"),
            text_of(header, "Modality"),
            text_of(header, "FrameOfReferenceUID"),
            tuple(members[uid]),
        )
        for uid, header in heads.items()
    ]
    return tuple(sorted(found, key=lambda s: (s.files[0].parent, s.number is None, s.number or 0, s.files[0])))

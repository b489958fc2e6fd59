"""A folder of DICOM series -> a dataset to inspect: each series a case, the structure set drawn on it its labels."""

import os
from collections import Counter
from pathlib import Path

from lampseg.data.cases import Case, Dataset
from lampseg.data.dicom.files import DicomSeries, dicom_files, header_of, read_dicom_series, text_of
from lampseg.data.dicom.structures import StructureSet, plain_name, read_structure_set
from lampseg.errors import UserError

MOST_CLASSES = 255


def read_dicom_dataset(root: Path) -> tuple[Dataset, dict[str, str]]:
    """The series below a folder; and what can't be used, with the reason.

    A case is called after its place in the list and its series number, since names of files and folders may name the
    patient. A structure set belongs to the series that it references or, if it references none, to the only one in
    its frame of reference. Classes are all regions that have closed contours, most frequent first; names that differ in
    case, blanks, dashes, dots and underscores only are one class, and regions beyond the 255 most frequent are left
    out. A region that a structure set lacks is not annotated there.

    Series with a structure set are training cases, the others are test cases.

    Raises:
        UserError: no image series; needs `lampseg[dicom]`.
    """
    root = Path(root)
    unreadable: list[str] = []
    series = read_dicom_series(root, faults=unreadable)
    drawn = _structure_sets(root, series, unreadable)
    classes = _classes([found for sets in drawn.values() for found in sets])
    training, test = [], []
    faults = {f"file-{number:03d}": message for number, message in enumerate(unreadable, start=1)}
    for number, each in enumerate(series, start=1):
        case_id = f"series-{number:03d}" + ("" if each.number is None else f"-n{each.number}")
        sets = drawn.get(each.uid, [])
        image = _path_of(each)
        if len(sets) > 1:
            files = ", ".join(str(found.file) for found in sets)
            faults[case_id] = (
                f"{each.files[0]}: {len(sets)} structure sets were drawn on its series ({files}); keep one"
            )
            continue
        if image is None:
            faults[case_id] = (
                f"{each.files[0]}: its series lies in several folders, together with others; move each series to a "
                "folder of its own"
            )
            continue
        names = {plain_name(region.name) for found in sets for region in found.regions}
        annotated = tuple(i for i, name in enumerate(classes) if i and plain_name(name) in names)
        if annotated:
            training.append(Case(case_id, (image,), sets[0].file, annotated))
        else:
            test.append(Case(case_id, (image,), None, None))
    if len(classes) == 1:
        classes = ("background", "organ")  # a dataset has two at least; nothing is drawn as the second
    return Dataset(root, "DICOM", classes, tuple(training), tuple(test)), faults


def _structure_sets(
    root: Path, series: tuple[DicomSeries, ...], unreadable: list[str]
) -> dict[str, list[StructureSet]]:
    """By the UID of the series that they were drawn on."""
    drawn: dict[str, list[StructureSet]] = {}
    for file in dicom_files(root):
        try:
            if text_of(header_of(file), "Modality") == "RTSTRUCT":
                found = read_structure_set(file)
                for uid in _drawn_on(found, series):
                    drawn.setdefault(uid, []).append(found)
        except UserError as error:
            if str(error) not in unreadable:
                unreadable.append(str(error))
    return drawn


def _path_of(series: DicomSeries) -> Path | None:
    """What stands for all files of a series: one of them, if they share a folder; else the folder of them alone."""
    folders = {file.parent for file in series.files}
    if len(folders) == 1:
        return series.files[0]
    common = Path(os.path.commonpath(folders))
    return common if len(read_dicom_series(common, faults=[])) == 1 else None


def _drawn_on(found: StructureSet, series: tuple[DicomSeries, ...]) -> list[str]:
    uids = [each.uid for each in series]
    if found.series:
        return [uid for uid in dict.fromkeys(found.series) if uid in uids]
    same = [each.uid for each in series if each.frame_of_reference in found.frames_of_reference]
    if len(same) > 1:
        raise UserError(
            f"{found.file}: references no series, and {len(same)} share its frame of reference; keep the series that "
            "it was drawn on"
        )
    return same


def _classes(sets: list[StructureSet]) -> tuple[str, ...]:
    counts: Counter[str] = Counter()
    spelled: dict[str, Counter[str]] = {}
    for found in sets:
        for region in found.regions:
            if plain_name(region.name) in ("", "background"):
                continue
            counts[plain_name(region.name)] += 1
            spelled.setdefault(plain_name(region.name), Counter())[region.name] += 1
    ranked = sorted(counts, key=lambda plain: (-counts[plain], plain))[:MOST_CLASSES]
    return ("background", *(_usual(spelled[plain]) for plain in ranked))


def _usual(spellings: Counter[str]) -> str:
    """The most frequent; of several, the first by alphabet."""
    return min(spellings, key=lambda name: (-spellings[name], name))

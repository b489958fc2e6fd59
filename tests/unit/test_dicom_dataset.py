"""A folder of DICOM series as a dataset: cases, classes from structure sets, and what can't be used."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lampseg.data.dicom.dataset import read_dicom_dataset
from lampseg.data.fingerprint.case_figures import measure_case
from lampseg.errors import UserError
from tests.dicom_files import edit, write_series, write_structures

SHAPE = (12, 10, 8)


def stored(seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 2000, SHAPE).astype(np.uint16)


def box(low: float, high: float, *slices: int) -> list[Any]:
    """A square of a series of unit spacing, in mm (RAS+)."""
    corners = [(low, low), (high, low), (high, high), (low, high)]
    return [np.array([(-x, -y, z) for x, y in corners]) for z in slices]


def test_series_become_cases_and_regions_classes(tmp_path: Path) -> None:
    write_series(tmp_path / "Doe" / "b", stored(0), series=11)
    write_series(tmp_path / "Doe" / "a", stored(1), series=12)
    write_series(tmp_path / "Roe", stored(2), series=13)
    write_structures(
        tmp_path / "Doe" / "rs1.dcm", [("Cord", box(0.5, 4.5, 2, 3)), ("parotid-l", box(5, 8, 2))], series=11
    )
    write_structures(tmp_path / "Doe" / "rs2.dcm", [("cord", box(0.5, 2.5, 1, 3)), ("no contour", [])], series=12)
    dataset, faults = read_dicom_dataset(tmp_path)
    assert faults == {}
    assert dataset.classes == ("background", "Cord", "parotid-l")
    assert [(c.id, c.annotated) for c in dataset.training] == [("series-001-n12", (1,)), ("series-002-n11", (1, 2))]
    assert [(c.id, c.labelled) for c in dataset.test] == [("series-003-n13", False)]
    one, two = (measure_case(case, classes=dataset.classes, sample=10**6) for case in dataset.training)
    assert {index: each.voxels for index, each in one.classes.items()} == {1: 2 * 2 * 2}
    assert {index: each.voxels for index, each in two.classes.items()} == {1: 2 * 16, 2: 9}
    assert (one.gaps, two.gaps) == ({1: 1}, {})
    expected = stored(0)[1:5, 1:5, 2:4] - 1024.0
    assert sorted(two.samples[1][0].tolist()) == sorted(expected.ravel().tolist())


def test_regions_may_overlap(tmp_path: Path) -> None:
    """The second lies within the first, and does not fill its own bounding box."""
    write_series(tmp_path, stored())
    write_structures(
        tmp_path / "rs.dcm", [("body", box(-0.5, 9.5, 2)), ("cord", [*box(0.5, 2.5, 2), *box(3.5, 5.5, 2)])]
    )
    dataset, _ = read_dicom_dataset(tmp_path)
    found = measure_case(dataset.training[0], classes=dataset.classes, sample=10)
    assert {dataset.classes[i]: each.voxels for i, each in found.classes.items()} == {"body": 100, "cord": 8}
    assert found.background == 12 * 10 * 8 - 100


def test_the_most_frequent_region_and_spelling_come_first(tmp_path: Path) -> None:
    for series, names in ((11, ["cord", "aorta"]), (12, ["Cord"]), (13, ["cord"])):
        write_series(tmp_path / f"{series}", stored(), series=series)
        regions = [(name, box(0.5, 4.5, 2)) for name in names]
        write_structures(tmp_path / f"rs{series}.dcm", regions, series=series)
    assert read_dicom_dataset(tmp_path)[0].classes == ("background", "cord", "aorta")


def test_a_structure_set_without_a_series_goes_by_its_frame_of_reference(tmp_path: Path) -> None:
    def forget(item: Any) -> None:
        del item.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence

    write_series(tmp_path / "a", stored())
    edit(write_structures(tmp_path / "rs.dcm", [("cord", box(0.5, 4.5, 2))]), forget)
    assert len(read_dicom_dataset(tmp_path)[0].training) == 1
    write_series(tmp_path / "b", stored(), series=12)
    dataset, faults = read_dicom_dataset(tmp_path)
    assert len(dataset.test) == 2
    assert "references no series, and 2 share its frame of reference" in faults["file-001"]


def test_two_structure_sets_of_one_series(tmp_path: Path) -> None:
    write_series(tmp_path / "a", stored())
    write_series(tmp_path / "b", stored(), series=12)
    for name in ("rs1.dcm", "rs2.dcm"):
        write_structures(tmp_path / name, [("cord", box(0.5, 4.5, 2))])
    dataset, faults = read_dicom_dataset(tmp_path)
    assert [case.id for case in (*dataset.training, *dataset.test)] == ["series-002-n12"]
    assert "2 structure sets were drawn on its series" in faults["series-001-n11"]


def test_a_series_over_several_folders(tmp_path: Path) -> None:
    for index, path in enumerate(write_series(tmp_path / "x" / "all", stored())):
        (tmp_path / "x" / f"part{index % 2}").mkdir(exist_ok=True)
        path.rename(tmp_path / "x" / f"part{index % 2}" / path.name)
    dataset, faults = read_dicom_dataset(tmp_path)
    assert faults == {}
    found = measure_case(dataset.test[0], classes=dataset.classes, sample=10**6)
    assert found.samples[-2].size == stored().size
    write_series(tmp_path / "x" / "part0", stored(), series=12)
    dataset, faults = read_dicom_dataset(tmp_path)
    assert [case.id for case in dataset.test] == ["series-002-n12"]
    assert "lies in several folders, together with others" in faults["series-001-n11"]


def test_files_that_cannot_be_read_are_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    write_series(tmp_path / "a", stored())
    (tmp_path / "bad.dcm").write_text("text")
    structures = write_structures(tmp_path / "rs.dcm", [("cord", box(0.5, 4.5, 2))])
    edit(structures, lambda item: item.ROIContourSequence[0].ContourSequence[0].__setattr__("ContourData", [1, 2]))
    dataset, faults = read_dicom_dataset(tmp_path)
    assert len(dataset.test) == 1
    assert sorted(faults) == ["file-001", "file-002"]
    assert "bad.dcm: not a readable DICOM file" in faults["file-001"]
    assert "rs.dcm: its contours can't be read" in faults["file-002"]


def test_no_series(tmp_path: Path) -> None:
    write_structures(tmp_path / "rs.dcm", [("cord", box(0.5, 4.5, 2))])
    with pytest.raises(UserError, match="no DICOM image series in it"):
        read_dicom_dataset(tmp_path)

"""Cases summed up: percentiles, classes, suggestions, and each thing that is worth a look."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lampseg.data import Case
from lampseg.data.fingerprint.case_figures import FOREGROUND, IMAGE, CaseFigures, CaseHeader, ClassFigures
from lampseg.data.fingerprint.fingerprint import (
    MOST_KEPT,
    Measured,
    fingerprint_json,
    make_fingerprint,
    sample_size,
    suggested_spacing,
)
from lampseg.data.fingerprint.notes import fingerprint_notes

CLASSES = ("background", "kidney", "cord")


def header(**changes: Any) -> CaseHeader:
    plain = {"shape": (10, 20, 30), "spacing": (1, 1, 2), "orientation": "RAS", "oblique": 0.0, "channels": 1}
    return CaseHeader(**(plain | changes))


def organ(voxels: int, *, border: bool = False) -> ClassFigures:
    return ClassFigures(voxels, voxels / 500, (voxels, 2, 3), (float(voxels), 2, 6), border)


def measured(
    name: str,
    *,
    part: str = "training",
    labelled: bool = True,
    annotated: Any = None,
    organs: Any = None,
    samples: Any = None,
    digest: str | None = None,
    low: Any = None,
    gaps: Any = None,
    lowest: float = -1000,
    **changes: Any,
) -> Measured:
    case = Case(name, (Path(f"{name}.nii"),), Path(f"{name}.label.nii") if labelled else None, annotated)
    figures = CaseFigures(
        ((lowest, 0.0, 1000.0),),
        {1: organ(10), 2: organ(4)} if organs is None else organs,
        100,
        {key: np.atleast_2d(np.asarray(values, np.float32)) for key, values in (samples or {}).items()},
        low or {},
        digest or name,
        gaps or {},
    )
    return Measured(case, part, header(**changes), figures)


def fingerprint(*cases: Measured) -> Any:
    return make_fingerprint("Data", classes=CLASSES, channels=("CT",), measured=cases, sampled=100)


def notes(*cases: Measured) -> list[str]:
    return fingerprint_notes(fingerprint(*cases))


def test_percentiles_are_those_of_all_samples_of_the_training_cases() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=50), rng.normal(5, 2, size=70)
    found = fingerprint(
        measured("a", samples={1: one, IMAGE: one}),
        measured("b", samples={1: two, IMAGE: two, 2: []}),
        measured("t", part="test", samples={1: [1e6]}),
    )
    rows = {row.region: row for row in found.intensities}
    assert sorted(rows) == ["image", "kidney"]
    expected = np.percentile(np.concatenate([one, two]).astype(np.float32), [0.5, 5, 25, 50, 75, 95, 99.5])
    assert list(rows["kidney"].percentiles) == ["0.5", "5", "25", "50", "75", "95", "99.5"]
    np.testing.assert_allclose(list(rows["kidney"].percentiles.values()), expected, rtol=1e-6)
    assert (rows["kidney"].cases, rows["kidney"].voxels) == (2, 120)


def test_classes_over_the_training_cases() -> None:
    found = fingerprint(
        measured("a", organs={1: organ(10, border=True), 2: organ(4)}),
        measured("b", organs={1: organ(30)}),
        measured("c", organs={1: organ(50)}, annotated=(1,)),
        measured("t", part="test", organs={1: organ(1000)}),
    )
    kidney, cord = found.summaries
    assert (kidney.annotated, kidney.present, kidney.not_annotated) == (3, 3, ())
    assert (kidney.voxels.min, kidney.voxels.median, kidney.voxels.max) == (10, 30, 50)
    assert kidney.ml.median == pytest.approx(30 / 500)
    assert [side.median for side in kidney.box_mm] == [30, 2, 6]
    assert [side.max for side in kidney.box_voxels] == [50, 2, 3]
    assert kidney.touches_border == ("a",)
    assert kidney.share == pytest.approx(90 / (3 * 6000))
    assert (cord.annotated, cord.present, cord.not_annotated) == (2, 1, ("c",))
    assert cord.share == pytest.approx(4 / (2 * 6000))


def test_memory_for_samples_does_not_grow_with_the_dataset() -> None:
    assert sample_size(1) == sample_size(50) == 10_000
    assert [cases * sample_size(cases) <= MOST_KEPT for cases in (51, 700, 100_000)] == [True] * 3


def test_the_suggested_spacing_is_the_median() -> None:
    headers = [header(spacing=spacing) for spacing in ((1, 2, 3), (1.5, 1, 2), (9, 1.2, 2.5))]
    assert suggested_spacing(headers) == (1.5, 1.2, 2.5)


def test_thick_slices_of_few_scans_do_not_set_the_spacing() -> None:
    thick = [header(shape=(200, 200, 30), spacing=(1, 1, edge)) for edge in (2, 5, 6, 6, 7)]
    assert suggested_spacing(thick) == (1, 1, pytest.approx(3.2))
    fine = [header(shape=(200, 200, 30), spacing=(1, 1, edge)) for edge in (0.5, 0.5, 6, 6, 7)]
    assert suggested_spacing(fine) == (1, 1, 1)
    many = [header(shape=(200, 200, 150), spacing=(1, 1, edge)) for edge in (2, 5, 6, 6, 7)]
    assert suggested_spacing(many) == (1, 1, 6)


def test_a_window_is_suggested_for_hounsfield_units_only() -> None:
    values = {FOREGROUND: np.arange(-100, 301), IMAGE: [-1000, 50]}
    assert fingerprint(measured("a", samples=values)).suggestions.window == (-98, 298)
    assert fingerprint(measured("a", samples=values, lowest=-150)).suggestions.window is None
    parts = {FOREGROUND: np.arange(-100, 301) + 0.5, IMAGE: [-1000, 50]}
    assert fingerprint(measured("a", samples=parts)).suggestions.window is None


def test_nothing_to_look_at() -> None:
    assert notes(measured("a"), measured("b")) == []


@pytest.mark.parametrize(
    ("cases", "note"),
    [
        (
            [measured("a", spacing=(1, 1, 1)), measured("b", spacing=(1, 1, 2.5))],
            "spacing along z goes from 1 to 2.5 mm",
        ),
        ([measured("a"), measured("b", orientation="LPS")], "orientations are mixed (1 LPS, 1 RAS)"),
        ([measured("a", oblique=12.0)], "1 scan(s) are tilted by more than 1 degree (a)"),
        ([measured("a"), measured("b"), measured("c", channels=2)], "the number of channels is not 1 in c"),
        (
            [measured("a", digest="x"), measured("t", part="test", digest="x")],
            "a (training), t (test) hold the same voxels",
        ),
        ([measured("a"), measured("b", organs={})], "1 label map(s) are all background: b"),
        ([measured("a", low={1: 0.06, 2: 0.04})], "voxels of kidney hold the image's lowest value"),
        ([measured("a", organs={1: organ(5)})], "cord is present in no training case"),
        ([measured("a", annotated=(1,), organs={1: organ(5)})], "cord is annotated in no training case"),
        (
            [measured("a", organs={1: organ(5, border=True), 2: organ(1)})],
            "kidney reaches the border of the image in a",
        ),
        ([measured("a"), measured("t", part="test", labelled=False)], "1 test case(s) have no labels"),
        ([measured("a", gaps={2: 3})], "contours of cord leave slices out between the first and the last one"),
    ],
)
def test_what_is_worth_a_look(cases: list[Measured], note: str) -> None:
    found = notes(*cases)
    assert len(found) == 1
    assert found[0].startswith(note)


def test_spacings_within_a_factor_of_two_are_fine() -> None:
    assert notes(measured("a", spacing=(1, 1, 1)), measured("b", spacing=(1, 1, 2))) == []


def test_the_json_form() -> None:
    found = fingerprint(measured("a", annotated=(1,), organs={1: organ(5)}, samples={1: [1, 2, 3]}))
    tree = fingerprint_json(found)
    assert tree["version"] == 1
    assert tree["cases"][0] == {
        "id": "a",
        "part": "training",
        "shape": (10, 20, 30),
        "spacing": (1, 1, 2),
        "orientation": "RAS",
        "oblique": 0.0,
        "channels": 1,
        "intensity": [{"min": -1000, "mean": 0.0, "max": 1000.0}],
        "annotated": ["kidney"],
        "background_voxels": 100,
        "organs": {
            "kidney": {
                "voxels": 5,
                "ml": 0.01,
                "box_voxels": (5, 2, 3),
                "box_mm": (5.0, 2, 6),
                "touches_border": False,
            }
        },
    }
    assert tree["grids"]["spacing"][2] == {"min": 2, "median": 2, "max": 2}
    assert tree["intensities"][0]["percentiles"]["50"] == 2

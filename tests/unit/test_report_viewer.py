"""What the viewer embeds: volumes that say the same as the files, within the budget, and nothing of the patient."""

import base64
import gzip
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from lampseg.data.dataset import Case
from lampseg.errors import UserError
from lampseg.evaluation.report.case_files import CaseArrays, CaseFiles, read_case
from lampseg.evaluation.report.colours import class_colour, class_rgb
from lampseg.evaluation.report.viewer import CONFUSED, MISSED, SUPERFLUOUS, niivue, numbered_classes, viewer_case
from tests.unit.fake_cases import NAMES, SHAPE, labels_of, make_cases, predicted, save


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> CaseArrays:
    data, predictions = make_cases(tmp_path_factory.mktemp("cases"))
    return read_case(
        CaseFiles(
            "case_b",
            data / "imagesTs" / "case_b.nii.gz",
            data / "labelsTs" / "case_b.nii.gz",
            predictions / "case_b.nii.gz",
        )
    )


def embedded(text: str) -> Any:
    """A volume of the page as nibabel reads it."""
    return nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def tree_of(case: CaseArrays, **options: Any) -> dict[str, Any]:
    return json.loads(viewer_case(case, class_names=NAMES, **options).data)


def test_case_is_read_in_ras_order(case: CaseArrays) -> None:
    np.testing.assert_array_equal(case.truth, labels_of(1))
    assert case.spacing == (1, 1, 2)
    np.testing.assert_allclose(case.affine[:3, 3], [-(SHAPE[0] - 1), 0, 0])


def test_a_listed_case_may_have_channels_and_masks_in_files_of_their_own(tmp_path: Path) -> None:
    labels = labels_of(1)
    channels = tuple(save(tmp_path / f"x_{c}.nii.gz", np.full(SHAPE, 10.0 + c, np.float32)) for c in (0, 1))
    masks = tuple((c, save(tmp_path / f"mask_{c}.nii.gz", (labels == c).astype(np.uint8))) for c in (1, 2, 3))
    listed = Case("x", channels, None, None, masks)
    read = read_case(CaseFiles("x", channels[0], listed=listed))
    np.testing.assert_array_equal(read.truth, labels)
    assert read.image.shape == SHAPE
    assert np.unique(read.image) == [10.0], "the first channel is shown"
    assert read.prediction is None


def test_volumes_are_those_of_the_files(case: CaseArrays) -> None:
    volumes = {name: embedded(text) for name, text in tree_of(case, window=(20.0, 80.0))["volumes"].items()}
    for name, expected in (("truth", labels_of(1)), ("prediction", predicted(labels_of(1)))):
        np.testing.assert_array_equal(np.asarray(volumes[name].dataobj), expected)
        assert volumes[name].header.get_intent()[0] == "label"
    for volume in volumes.values():
        np.testing.assert_allclose(volume.affine, case.affine)
    shown = volumes["image"].get_fdata()
    expected = np.clip(case.image, -40, 140)
    assert np.abs(shown - expected).max() <= 0.5 * (expected.max() - expected.min()) / 255 + 1e-3
    assert volumes["image"].header["intent_code"] == 0


def test_differences_say_what_kind(case: CaseArrays) -> None:
    truth = np.zeros((12, 12, 12), np.uint8)
    truth[2, 2, 2], truth[3, 3, 3], truth[4, 4, 4] = 1, 2, 1
    prediction = np.zeros_like(truth)
    prediction[3, 3, 3], prediction[4, 4, 4], prediction[5, 5, 5] = 1, 1, 2
    small = CaseArrays("x", np.zeros(truth.shape, np.float32), truth, prediction, np.eye(4))
    found = np.asarray(embedded(tree_of(small)["volumes"]["differences"]).dataobj)
    assert [found[i, i, i] for i in (2, 3, 4, 5)] == [MISSED, CONFUSED, 0, SUPERFLUOUS]
    assert np.count_nonzero(found) == 3


def test_legend_has_volumes_dice_and_a_place_inside(case: CaseArrays) -> None:
    first, second, third = tree_of(case)["organs"]
    assert first["volumes"] == {"truth": "2 ml", "prediction": "2 ml"}
    assert third["volumes"] == {"truth": "0.128 ml", "prediction": "0 ml"}
    assert second["colour"] == list(class_rgb(2))
    voxel = np.linalg.inv(case.affine) @ [*third["place"], 1.0]
    assert labels_of(1)[tuple(np.rint(voxel[:3]).astype(int))] == 3


def test_place_of_a_hollow_organ_lies_in_it() -> None:
    truth = np.zeros((20, 20, 20), np.uint8)
    truth[2:18, 2:18, 10], truth[4:16, 4:16, 10] = 1, 0
    ring = CaseArrays("x", truth.astype(np.float32), truth, None, np.eye(4))
    place = json.loads(viewer_case(ring, class_names=("background", "ring")).data)["organs"][0]["place"]
    assert truth[tuple(int(mm) for mm in place)] == 1


def test_a_large_case_is_shown_with_fewer_voxels_at_the_same_place(case: CaseArrays) -> None:
    whole = viewer_case(case, class_names=NAMES)
    budget = len(whole.data) // 3
    tree = tree_of(case, budget=budget)
    assert sum(len(text) for text in tree["volumes"].values()) <= budget
    assert "thin structures may look broken" in tree["note"]
    truth, image = embedded(tree["volumes"]["truth"]), embedded(tree["volumes"]["image"])
    steps = np.abs(np.diag(truth.affine)[:3]) / case.spacing
    assert truth.shape == image.shape == tuple(-(-n // int(step)) for n, step in zip(SHAPE, steps))
    assert max(steps) > 1
    # The middle of class 1 stays where it is, to half a voxel of the coarser grid.
    coarse = truth.affine[:3] @ [*np.argwhere(np.asarray(truth.dataobj) == 1).mean(axis=0), 1.0]
    fine = case.affine[:3] @ [*np.argwhere(labels_of(1) == 1).mean(axis=0), 1.0]
    assert (np.abs(coarse - fine) <= 0.5 * steps * case.spacing + 1e-6).all()
    assert tree["organs"][0]["volumes"]["truth"] == "2 ml", "counted on the full grid"
    # Means over the voxels that one stands for; the sum of the image is kept.
    assert image.get_fdata().mean() == pytest.approx(case.image.mean(), abs=1.0)


def test_fewer_voxels_lie_in_the_middle_of_those_they_stand_for() -> None:
    """An image that holds its own place along x, in mm, still does on the coarser grid."""
    affine = np.diag([0.5, 0.5, 0.5, 1.0])
    affine[:3, 3] = 7, 8, 9
    image = np.broadcast_to(7 + 0.5 * np.arange(48.0)[:, None, None], (48, 48, 48)).astype(np.float32)
    noise = np.random.default_rng(0).integers(0, 2, image.shape).astype(np.uint8)
    ramp = CaseArrays("ramp", image, noise, None, affine)
    data = json.loads(viewer_case(ramp, class_names=("background", "noise"), budget=4000).data)
    shown = embedded(data["volumes"]["image"])
    assert shown.shape[0] <= 24
    places = shown.affine[0, 3] + shown.affine[0, 0] * np.arange(shown.shape[0])
    np.testing.assert_allclose(shown.get_fdata()[1:-1, 0, 0], places[1:-1], atol=0.06)


def test_nothing_of_the_file_s_header_is_embedded(tmp_path: Path) -> None:
    data, _ = make_cases(tmp_path)
    path = data / "imagesTs" / "case_a.nii.gz"
    image = nibabel.load(path)
    image.header["descrip"] = b"Jane Doe 1970"
    image.header["aux_file"] = b"secret"
    nibabel.save(image, path)
    text = tree_of(read_case(CaseFiles("case_a", path)))["volumes"]["image"]
    raw = gzip.decompress(base64.b64decode(text))
    assert b"Jane" not in raw
    assert b"secret" not in raw


def test_without_truth_or_prediction(case: CaseArrays) -> None:
    lone = CaseArrays("x", case.image, None, None, case.affine)
    tree = tree_of(lone)
    assert set(tree["volumes"]) == {"image"}
    assert tree["organs"][0]["place"] is None
    assert numbered_classes(lone) == ("background",)
    assert numbered_classes(case) == ("background", "class 1", "class 2", "class 3")


def test_a_class_without_a_name_is_refused(case: CaseArrays) -> None:
    with pytest.raises(UserError, match=r"case_b: its label holds class 3, but only 3 classes are named"):
        viewer_case(case, class_names=NAMES[:3])


def test_the_same_case_gives_the_same_bytes(case: CaseArrays) -> None:
    assert viewer_case(case, class_names=NAMES) == viewer_case(case, class_names=NAMES)


def test_colours_differ() -> None:
    colours = [class_colour(c) for c in range(1, 60)]
    assert len(set(colours)) == len(colours)
    assert all(len(colour) == 7 for colour in colours)
    assert class_rgb(1) == (0x33, 0xBB, 0xFF)


def test_the_library_is_the_published_file_with_its_licences() -> None:
    folder = resources.files("lampseg.evaluation.report") / "vendor" / "niivue"
    script = (folder / "niivue.umd.js").read_bytes()
    checksum = hashlib.sha256(script).hexdigest()
    assert checksum == "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
    assert checksum in (folder / "README.md").read_text()
    assert "BSD 2-Clause" in (folder / "LICENSE").read_text()
    text, packed = niivue()
    assert gzip.decompress(base64.b64decode(packed)) == script == text.encode()
    assert len(packed) < 1.1e6

"""Which images, which weights and which options a prediction uses, and which combinations are refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from lampseg.commands.predict_model import trained_in_slabs, weights_file
from lampseg.commands.predict_options import PredictOptions
from lampseg.commands.run_folder import Task
from lampseg.config import Config
from lampseg.errors import UserError
from lampseg.inference.components import chosen_classes
from lampseg.inference.inputs import case_of, cases_of
from lampseg.inference.mirror import Mirror, left_right_pairs
from lampseg.partition import make_plan, plans_to_json

NAMES = (
    "a.nii.gz",
    "b.nii",
    "._a.nii.gz",
    "notes.txt",
    "more/c.nii.gz",
    "more/a.nii",
    "empty/x.txt",
    "other/v.nrrd",
    "other/w.npy",
    "series/1.DCM",
    "series/2.DCM",
    "nn/p_0001.nii.gz",
    "nn/p_0000.nii.gz",
    "nn/q_0000.nii.gz",
    "nn/r_0003.nii.gz",
    "nn/s.nii.gz",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "nameless").mkdir()
    (tmp_path / "nameless" / "IM1").write_bytes(b"\0" * 128 + b"DICM")
    return tmp_path


def found(paths: list[Path], channels: int = 1) -> list[tuple[str, list[str]]]:
    return [(case.name, [image.name for image in case.images]) for case in cases_of(paths, channels=channels)]


def test_files_and_folders_in_order(folder: Path) -> None:
    assert found([folder / "more" / "c.nii.gz", folder, folder / "other"]) == [
        ("c", ["c.nii.gz"]),
        ("a", ["a.nii.gz"]),
        ("b", ["b.nii"]),
        ("v", ["v.nrrd"]),
        ("w", ["w.npy"]),
    ]


@pytest.mark.parametrize("name", ["series", "nameless"])
def test_a_dicom_folder_is_one_case(name: str, folder: Path) -> None:
    assert [(case.name, case.images) for case in cases_of([folder / name])] == [(name, (folder / name,))]


def test_dicom_folders_in_a_folder_and_files_of_a_series(folder: Path) -> None:
    (folder / "scans").mkdir()
    for name in ("series", "nameless"):
        (folder / name).rename(folder / "scans" / name)
    both = [("nameless", ["nameless"]), ("series", ["series"])]
    assert found([folder / "scans"]) == both
    named = [folder / "scans" / "nameless" / "IM1", *sorted((folder / "scans" / "series").iterdir())]
    assert found(named) == both
    assert found(named, 2) == both


def test_files_of_one_channel_each_make_a_case(folder: Path) -> None:
    """Only if all channels are there; a file of another name may hold all of them."""
    parts = ["p_0000.nii.gz", "p_0001.nii.gz"]
    rest = [(f"{name}", [f"{name}.nii.gz"]) for name in ("q_0000", "r_0003", "s")]
    assert found([folder / "nn"], 2) == [("p", parts), *rest]
    assert found([folder / "nn" / part for part in reversed(parts)], 2) == [("p", parts)]
    assert [name for name, _ in found([folder / "nn"])] == ["p_0000", "p_0001", "q_0000", "r_0003", "s"]
    assert [name for name, _ in found([folder / "nn"], 3)] == ["p_0000", "p_0001", "q_0000", "r_0003", "s"]


def listed(folder: Path, content: Any) -> list[Path]:
    (folder / "dataset.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return [folder / "dataset.json"]


def test_the_test_list_of_a_dataset(folder: Path) -> None:
    tests = [
        "./more/c.nii.gz",
        {"image": "a.nii.gz", "label": "none.nii.gz"},
        "._a.nii.gz",
        "nn/p.nii.gz",
        "gone.nii.gz",
    ]
    expected = [("c", ["c.nii.gz"]), ("a", ["a.nii.gz"]), ("p", ["p_0000.nii.gz", "p_0001.nii.gz"])]
    # What is missing is a fault of that case, found as it is read.
    assert found(listed(folder, {"test": tests}), 2) == [*expected, ("gone", ["gone.nii.gz"])]
    both = {"test": [{"image": ["nn/p_0000.nii.gz", "nn/p_0001.nii.gz"]}]}
    assert found(listed(folder, both), 2) == [("p", ["p_0000.nii.gz", "p_0001.nii.gz"])]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"dataset\.json: cannot be read as JSON"),
        ({"training": []}, r"dataset\.json: its `test` lists no scans"),
        ({"test": []}, "lists no scans; give their folder"),
        ([1], "lists no scans"),
        ({"test": ["a.nii.gz", 3]}, r"test\[1\]: expected a path .*found 3"),
        ({"test": [{"label": "a.nii.gz"}]}, r"test\[0\]: expected a path"),
        ({"test": ["a.nii.gz", "more/a.nii"]}, r"would be written to the same a\.nii\.gz"),
    ],
)
def test_lists_that_are_refused(content: Any, message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        cases_of(listed(folder, content))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no image given; name NIfTI files, folders of them, or a dataset.json"),
        (["none.nii"], r"none\.nii: no such file or folder"),
        (["empty"], r"empty: there is no \.nii or \.nii\.gz file in this folder"),
        (["a.nii.gz", "more/a.nii"], r"more/a\.nii and \S*a\.nii\.gz would be written to the same a\.nii\.gz"),
        (["a.nii.gz", "a.nii.gz"], "would be written to the same"),
    ],
)
def test_images_that_are_refused(names: list[str], message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        cases_of([folder / name for name in names])


@pytest.mark.parametrize(
    ("image", "output"),
    [("a.nii.gz", "a.nii.gz"), ("a.nii", "a.nii.gz"), ("a.b.nii.gz", "a.b.nii.gz"), ("a_0000.nii", "a_0000.nii.gz")],
)
def test_output_names(image: str, output: str) -> None:
    assert case_of(Path("folder") / image).output == output


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two stages, of which the first is done, and two step checkpoints, one of them incomplete."""
    folder = tmp_path / "run" / "checkpoints"
    for name in ("best.safetensors", "stage-1.safetensors", "step-00000010/state.json", "step-00000020/other"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return tmp_path / "run"


def test_checkpoints_by_name_and_by_path(run: Path, tmp_path: Path) -> None:
    assert weights_file(run, "best") == run / "checkpoints" / "best.safetensors"
    assert weights_file(run, "stage-1") == run / "checkpoints" / "stage-1.safetensors"
    assert weights_file(run, "last") == run / "checkpoints" / "step-00000010" / "network.safetensors"
    (tmp_path / "mine.safetensors").touch()
    assert weights_file(run, str(tmp_path / "mine.safetensors")) == tmp_path / "mine.safetensors"


@pytest.mark.parametrize("name", ["stage-2", "bset", "", ".", "checkpoints"])
def test_checkpoints_that_are_not_there(name: str, run: Path) -> None:
    with pytest.raises(UserError, match=f"has no checkpoint `{name}`; there is best, stage-1, last"):
        weights_file(run, name)


def test_slabs_where_the_plan_chose_them(tmp_path: Path) -> None:
    """The stage with the largest inputs decides; without a plan, or with one of another version, the configuration."""
    auto, spatial = (Config.model_validate(TREE | {"parallel": {"mode": mode}}) for mode in ("auto", "spatial"))
    assert not trained_in_slabs(tmp_path, auto)
    assert trained_in_slabs(tmp_path, spatial)
    small, large = ((1, 1, 8, 8, 8), (1, 1, 16, 8, 8))
    for shapes, cut, expected in (((small, large), 1, True), ((large, small), 1, False), ((small, large), 0, False)):
        plans = [make_plan(nn.Conv3d(1, 2, 3, padding=1), shape=shape) for shape in shapes]
        plans[cut] = replace(plans[cut], choices=replace(plans[cut].choices, slabs=(2, 1, 1)))
        (tmp_path / "plan.json").write_text(plans_to_json(plans))
        assert trained_in_slabs(tmp_path, auto) == expected
        assert trained_in_slabs(tmp_path, spatial)
    (tmp_path / "plan.json").write_text('{"version": 1, "plans": [{"version": 1}]}')
    assert not trained_in_slabs(tmp_path, auto)


TREE = {"data": {"root": "unused"}, "curriculum": [{"patch": 8, "steps": 1}]}
TASK = Task(("background", "liver"), (4, 4, 4))
EYES = Task(("background", "Eye_L", "lens", "Eye_R"), (4, 4, 4))


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    for name in ("best", "last"):
        with pytest.raises(UserError, match="there is none yet: train it first"):
            weights_file(tmp_path, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PredictOptions(overlap=1.0), r"--overlap: 1\.0 is not a fraction from 0 to below 1"),
        (PredictOptions(overlap=float("nan")), "--overlap: nan"),
        (PredictOptions(window=(8, 8, 6)), r"--window: \[8, 8, 6\] is not a multiple .*\[4, 4, 4\]; .*\[8, 8, 8\]"),
        (PredictOptions(window=(0, 8, 8)), r"--window: \[0, 8, 8\] .*\[4, 8, 8\]"),
        (PredictOptions(window=(1, 8, 8)), r"for instance \[4, 8, 8\]"),
        (PredictOptions(windows_per_pass=0), "--windows-per-pass: 0 is not 1 or more"),
        (PredictOptions(mirror="y,w"), r"--mirror: 'y,w' is not some of x, y and z, such as `y,z`"),
        (PredictOptions(mirror="y,y"), "--mirror: 'y,y'"),
        (PredictOptions(largest_component="livr"), r"--largest-component: .* `livr`: did you mean `liver`\?"),
        (PredictOptions(largest_component="background"), "`background`: the organs are liver; or `all`"),
    ],
)
def test_options_that_are_refused(options: PredictOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options.checked(TASK)


def test_left_and_right_are_not_mixed() -> None:
    with pytest.raises(UserError, match=r"shows Eye_R where Eye_L is, .* leave x out, or .* --mirror-swaps-pairs"):
        PredictOptions(mirror="z,x").checked(EYES)
    assert PredictOptions(mirror="z,y").checked(EYES).mirrored(EYES) == Mirror((1, 2))
    swapping = PredictOptions(mirror="z,x", mirror_swaps_pairs=True).checked(EYES)
    assert swapping.mirrored(EYES) == Mirror((0, 2), ((1, 3),))
    assert PredictOptions(mirror="x").checked(TASK).mirrored(TASK) == Mirror((0,))
    assert PredictOptions(mirror="y", mirror_swaps_pairs=True).mirrored(EYES) == Mirror((1,))


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        (("a", "Parotid_L", "Parotid_R", "Lens_L", "left kidney", "right kidney"), ((1, 2), (4, 5))),
        (("a", "lung_upper_lobe_left", "lung_upper_lobe_right", "L", "R"), ((1, 2), (3, 4))),
        (("rib_right_1", "rib_left_1", "rib_left_2", "liver", "brain"), ((0, 1),)),
    ],
)
def test_pairs_by_name(names: tuple[str, ...], pairs: Any) -> None:
    assert left_right_pairs(names) == pairs


def test_classes_by_name() -> None:
    assert chosen_classes("", EYES.classes) == ()
    assert chosen_classes("all", EYES.classes) == (1, 2, 3)
    assert chosen_classes("Eye_R, lens,Eye_R", EYES.classes) == (3, 2)


def test_options_that_are_possible() -> None:
    assert PredictOptions().checked(TASK) == PredictOptions()
    PredictOptions(window=(4, 8, 12), overlap=0).checked(TASK)
    assert PredictOptions().sliding() is None


def test_a_network_of_one_size_has_its_window() -> None:
    task = Task(("background", "liver"), (32, 16, 32), window=(32, 16, 32))
    for options in (PredictOptions(), PredictOptions(window=(32, 16, 32))):
        assert options.checked(task).window == (32, 16, 32)
    with pytest.raises(UserError, match=r"--window: \[32, 32, 32\] .* only takes .*\[32, 16, 32\].*leave --window out"):
        PredictOptions(window=(32, 32, 32)).checked(task)

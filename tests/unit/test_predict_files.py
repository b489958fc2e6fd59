"""Which images, which weights and which options a prediction uses, and which combinations are refused."""

from pathlib import Path

import pytest

from lampseg.commands.predict import PredictOptions, image_files, weights_file
from lampseg.commands.run_folder import Task
from lampseg.errors import UserError
from lampseg.inference.predictor import output_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.nii.gz", "b.nii", "._a.nii.gz", "notes.txt", "more/c.nii.gz", "more/a.nii", "empty/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_files_and_folders_in_order(folder: Path) -> None:
    found = image_files([folder / "more" / "c.nii.gz", folder])
    assert [path.name for path in found] == ["c.nii.gz", "a.nii.gz", "b.nii"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "no image given; name NIfTI files, or folders of them"),
        (["none.nii"], r"none\.nii: no such file or folder"),
        (["empty"], r"empty: there is no \.nii or \.nii\.gz file in this folder"),
        (["a.nii.gz", "more/a.nii"], r"more/a\.nii and \S*a\.nii\.gz would be written to the same a\.nii\.gz"),
        (["a.nii.gz", "a.nii.gz"], "would be written to the same"),
    ],
)
def test_images_that_are_refused(names: list[str], message: str, folder: Path) -> None:
    with pytest.raises(UserError, match=message):
        image_files([folder / name for name in names])


@pytest.mark.parametrize(
    ("image", "output"),
    [("a.nii.gz", "a.nii.gz"), ("a.nii", "a.nii.gz"), ("a.b.nii.gz", "a.b.nii.gz"), ("a_0000.nii", "a_0000.nii.gz")],
)
def test_output_names(image: str, output: str) -> None:
    assert output_name(Path("folder") / image) == output


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


TASK = Task(("background", "liver"), (4, 4, 4))


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
    ],
)
def test_options_that_are_refused(options: PredictOptions, message: str) -> None:
    with pytest.raises(UserError, match=message):
        options.checked(TASK)


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

"""Faulty images, weights, options and folders for the other verbs: one line that helps, exit code 2, no remains."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from lampseg.cli import main
from tests.end_to_end.small import SHAPE, files_of, refused, save, write_config, write_dataset
from tests.limits import no_space_beyond

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds `data`, `run` (trained on it) and some images, good and bad."""
    folder = tmp_path_factory.mktemp("predict")
    root = write_dataset(folder / "data")
    config = write_config(folder / "config.yaml", root)
    main(["train", str(config), "--run", str(folder / "run")])
    noise = np.random.default_rng(0).normal(0, 50, SHAPE).astype(np.float32)
    good = save(folder / "good.nii.gz", noise)
    content = good.read_bytes()
    (folder / "cut.nii.gz").write_bytes(content[: len(content) * 2 // 3])
    (folder / "text.nii.gz").write_text("no image")
    save(folder / "film.nii.gz", np.zeros((*SHAPE, 2), np.float32))
    save(folder / "nan.nii.gz", np.full(SHAPE, np.nan, np.float32))
    save(folder / "dot.nii.gz", np.zeros((1, 1, 1), np.float32))
    save(folder / "twice" / "good.nii", noise)
    (folder / "empty").mkdir()
    (folder / "file").touch()
    (folder / "garbage.safetensors").write_bytes(b"garbage" * 99)
    save_file({"a": torch.zeros(1)}, folder / "foreign.safetensors")
    return folder


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("none.nii.gz", r"none\.nii\.gz: no such file or folder"),
        ("empty", r"empty: there is no \.nii or \.nii\.gz file in this folder"),
        ("twice/good.nii", r"would be written to the same good\.nii\.gz: predict them apart"),
    ],
)
def test_images_that_are_refused_before_anything_starts(
    image: str, message: str, folder: Path, capsys: Capture
) -> None:
    out = folder / "never"
    images = (folder / "good.nii.gz", folder / image)
    said = refused(capsys, "predict", "--run", folder / "run", "--out", out, "--devices", "2", *images)
    assert re.search(message, said), said
    assert not out.exists()


FAULTY = {
    "text": r"text\.nii\.gz: not a NIfTI file .*convert it",
    "film": r"film\.nii\.gz: 2 channels, but the network takes 1; give one file that holds all",
    "cut": r"cut\.nii\.gz: damaged or cut short",
    "nan": r"nan\.nii\.gz: 4096 of 4096 voxels are NaN",
    "dot": r"dot\.nii\.gz: \[2, 2, 2\] voxels shrink to a single one .*segment it with --window",
}


def failed(capture: Capture, *arguments: object) -> list[str]:
    """Runs a command that must do all it can and end with exit code 3; the lines of its list of faults."""
    capture.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capture.readouterr()
    assert ended.value.code == 3, f"{ended.value.code}: {err}"
    assert "Traceback" not in out + err
    return err.strip().splitlines()


def test_faulty_images_stop_no_other(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """They are listed at the end, in order, with what is wrong; nothing is half written."""
    out = tmp_path / "out"
    bad = [folder / f"{name}.nii.gz" for name in FAULTY]
    command = ("predict", "--run", folder / "run", "--out", out)
    first, *lines = failed(capsys, *command, *bad[:3], folder / "good.nii.gz", *bad[3:])
    assert first == f"lampseg: 5 of 6 images could not be segmented, the others are in {out}:"
    for line, message in zip(lines, FAULTY.values(), strict=True):
        assert re.search(message, line), line
    assert files_of(out) == ["good.nii.gz", "predictions.json"]
    assert nibabel.load(out / "good.nii.gz").shape == SHAPE
    record = json.loads((out / "predictions.json").read_text())
    assert [entry["output"] for entry in record["predictions"]] == ["good.nii.gz"]
    assert [Path(entry["image"]) for entry in record["faults"]] == bad
    assert [f"  {entry['fault']}" for entry in record["faults"]] == lines


def test_faulty_images_alone(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    command = ("predict", "--run", folder / "run", "--out", tmp_path, "--devices", "2")
    first, second = failed(capsys, *command, folder / "text.nii.gz")
    assert first.startswith("lampseg: 1 of 1 images could not be segmented")
    assert re.search(FAULTY["text"], second)
    assert files_of(tmp_path) == ["predictions.json"]


def test_a_fault_that_a_worker_finds(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    files = [str(folder / f"{name}.nii.gz") for name in ("cut", "good", "text")]
    with pytest.raises(SystemExit) as ended:
        main(["predict", "--run", str(folder / "run"), "--out", str(tmp_path / "out"), "--devices", "2", *files])
    said = capfd.readouterr()
    assert ended.value.code == 3, said
    assert re.fullmatch(
        r"lampseg: 2 of 3 images .*:\n  \S*cut\.nii\.gz: damaged .*again\n  \S*text\.nii\.gz: not a .*\n", said.err
    ), said
    assert "good.nii.gz: " in said.out
    assert files_of(tmp_path / "out") == ["good.nii.gz", "predictions.json"]


def test_what_is_done_is_left_out(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    out, images = tmp_path / "out", (folder / "good.nii.gz", folder / "data/imagesTr")
    command = [str(part) for part in ("predict", "--run", folder / "run", "--out", out)]
    main([*command, str(images[0])])
    made = (out / "good.nii.gz").stat().st_mtime_ns
    seconds = json.loads((out / "predictions.json").read_text())["predictions"][0]["seconds"]
    (out / "c1.nii.gz").write_bytes(b"left by a call without a list")
    capsys.readouterr()
    main([*command, "--skip-existing", *map(str, images)])
    said = capsys.readouterr().out
    assert "2 of 4 were there" in said
    assert [line.split("/")[-1].split(":")[0] for line in said.splitlines()[:2]] == ["c0.nii.gz", "c2.nii.gz"]
    assert (out / "good.nii.gz").stat().st_mtime_ns == made
    record = json.loads((out / "predictions.json").read_text())["predictions"]
    assert [entry["output"] for entry in record] == [f"{name}.nii.gz" for name in ("good", "c0", "c1", "c2")]
    assert record[0]["seconds"] == seconds
    assert record[2]["seconds"] is None
    mixed = refused(capsys, *command, "--skip-existing", "--checkpoint", "last", images[0])
    assert "--skip-existing would mix results: checkpoint was 'best', now 'last'. Choose another --out" in mixed
    main([*command, "--skip-existing", str(images[0])])
    assert len(json.loads((out / "predictions.json").read_text())["predictions"]) == 1
    main([*command, "--skip-existing", "--probabilities", str(images[0])])
    assert (out / "good.nii.gz").stat().st_mtime_ns > made, "without its probabilities it is not done"
    assert (out / "good.probabilities.npz").is_file()


def test_every_option_at_once(folder: Path, tmp_path: Path) -> None:
    """As workers of two devices get them."""
    options = "--window 8 --windows-per-pass 2 --mirror x,z --largest-component a,b --probabilities --resample labels"
    command = ["predict", "--run", str(folder / "run"), "--out", str(tmp_path), "--devices", "2", *options.split()]
    main([*command, str(folder / "good.nii.gz"), str(folder / "data" / "imagesTr")])
    names = ("c0", "c1", "c2", "good")
    files = [f"{name}{suffix}" for name in names for suffix in (".nii.gz", ".probabilities.npz")]
    assert files_of(tmp_path) == [*files, "predictions.json"]
    record = json.loads((tmp_path / "predictions.json").read_text())
    assert (record["mirror"], record["resample"], record["largest_component"]) == ("x,z", "labels", "a,b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--checkpoint", "bset"], r"has no checkpoint `bset`; there is best, stage-1, stage-1-best, last"),
        (["--checkpoint", "FOLDER/empty"], "has no checkpoint `.*empty`"),
        (["--checkpoint", "FOLDER/garbage.safetensors"], r"garbage\.safetensors: cannot be read as network weights"),
        (["--checkpoint", "FOLDER/foreign.safetensors"], r"foreign\.safetensors holds another network: `a` is unknown"),
        (["--window", "7"], r"--window: \[7, 7, 7\] is not a multiple of .*\[2, 2, 2\]; use for instance \[8, 8, 8\]"),
        (["--window", "8", "8"], r"--window: \[8, 8\] is not one size above 0 or three"),
        (["--window", "0"], r"--window: \[0\] is not one size above 0"),
        (["--window", "2"], r"--window: \[2, 2, 2\] voxels shrink to a single one .*larger --window"),
        (["--mirror", "w"], "--mirror: 'w' is not some of x, y and z"),
        (["--largest-component", "c"], "--largest-component: no organ is called `c`: .*the organs are a, b"),
        (["--overlap", "1"], r"--overlap: 1\.0 is not a fraction from 0 to below 1"),
        (["--window", "8", "--overlap", "nan"], "--overlap: nan is not a fraction"),
        (["--devices", "0"], "'0' is not a number of devices such as 2"),
        (["--devices", "50"], "50 stages: .*at most [0-9]+ stages.*fewer devices"),
        (["--out", "FOLDER"], "good.nii.gz: the prediction would overwrite it; choose another --out"),
        (["--out", "FOLDER/file"], "file: the folder cannot be written .*for --out"),
        (["--out", "FOLDER/file/below"], "the folder cannot be written .*for --out"),
        (["--out", "/proc/lampseg"], "/proc/lampseg: the folder cannot be written"),
        (["--run", "FOLDER/none"], r"none: not the folder of a run.*give the folder that `lampseg train --run` wrote"),
        (["--network.filters", "4"], r"unknown option --network\.filters"),
    ],
)
def test_options_of_predict(options: list[str], message: str, folder: Path, tmp_path: Path, capsys: Capture) -> None:
    base = {"--run": str(folder / "run"), "--out": str(tmp_path / "out")}
    given = [option.replace("FOLDER", str(folder)) for option in options]
    rest = [part for name, value in base.items() if name not in given for part in (name, value)]
    said = refused(capsys, "predict", folder / "good.nii.gz", *rest, *given)
    assert re.search(message, said), said
    assert not (tmp_path / "out").exists() or files_of(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("task.json", "{", r"not the folder of a run, its task\.json cannot be read"),
        ("task.json", '{"classes": ["background", "a"], "stride": "abc"}', r"task\.json cannot be read"),
        ("config.yaml", "a: [", r"config\.yaml, line 1, column 5: not valid YAML"),
        ("config.yaml", None, r"config\.yaml: no such configuration file"),
        ("checkpoints", None, r"has no checkpoint `best`; there is none yet: train it first"),
    ],
)
def test_a_damaged_run(
    file: str, content: str | None, message: str, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    run = Path(shutil.copytree(folder / "run", tmp_path / "run"))
    if content is not None:
        (run / file).write_text(content)
    elif (run / file).is_dir():
        shutil.rmtree(run / file)
    else:
        (run / file).unlink()
    said = refused(capsys, "predict", "--run", run, "--out", tmp_path / "out", folder / "good.nii.gz")
    assert re.search(message, said), said


def test_a_disk_too_full_for_the_result(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    with no_space_beyond(100):
        said = refused(capsys, "predict", "--run", folder / "run", "--out", tmp_path, folder / "good.nii.gz")
    assert re.search(r"good\.nii\.gz: cannot be written .*; free disk space or choose another folder", said), said
    assert files_of(tmp_path) == []


def test_a_disk_too_full_for_the_probabilities(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    with no_space_beyond(5000):
        command = ("predict", "--run", folder / "run", "--out", tmp_path, "--probabilities")
        said = refused(capsys, *command, folder / "good.nii.gz")
    assert re.search(r"good\.probabilities\.npz: cannot be written .*; free disk space", said), said
    assert files_of(tmp_path) == []


def evaluate(folder: Path, **changes: Any) -> list[object]:
    options = {"predictions": folder / "data/labelsTr", "labels": folder / "data", "out": folder / "scores", **changes}
    return ["evaluate", *(part for name, value in options.items() for part in (f"--{name}", value))]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictions": "none"}, "none: no such folder of predictions; run `lampseg predict"),
        ({"predictions": "empty"}, r"empty: no predictions \(\*\.nii\.gz\) in this folder"),
        ({"labels": "none"}, "none: no such folder of labels; give"),
        ({"labels": "empty"}, r"empty: no label maps \(\*\.nii\.gz\) in this folder"),
        ({"predictions": "twice"}, "twice: no label in .* for good"),
        ({"out": "file/below"}, r"below/evaluation\.json: cannot be written .*choose another folder"),
    ],
)
def test_folders_of_evaluate(changes: dict[str, str], message: str, folder: Path, capsys: Capture) -> None:
    said = refused(capsys, *evaluate(folder, **{name: folder / value for name, value in changes.items()}))
    assert re.search(message, said), said
    assert not (folder / "scores").exists()


@pytest.mark.parametrize("verb", ["demo", "demo-data"])
@pytest.mark.parametrize("out", ["data", "file", "file/below"])
def test_demo_folders(verb: str, out: str, folder: Path, capsys: Capture) -> None:
    before = files_of(folder)
    said = refused(capsys, verb, "--out", folder / out)
    assert re.search("is not an empty folder; .*|cannot be written .*choose another folder", said), said
    assert files_of(folder) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["demo", "--devices", "abc"], "'abc' is not a number of devices"),
        (["demo-data", "--cases", "0"], "0 cases, .*at least 1"),
        (["demo-data", "--spacing", "9"], r"spacing 9\.0 mm; choose 1 to 5"),
        (["demo-data", "--seed", "-1"], "seed -1; at least"),
    ],
)
def test_numbers_of_the_demo(arguments: list[str], message: str, tmp_path: Path, capsys: Capture) -> None:
    said = refused(capsys, *arguments, "--out", tmp_path / "new")
    assert re.search(message, said), said
    assert not (tmp_path / "new").exists()


def test_names_with_brackets_are_printed_as_they_are(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """They are no markup of the terminal's: `[red]` would vanish there."""
    image = Path(shutil.copy(folder / "good.nii.gz", tmp_path / "scan[red].nii.gz"))
    main(["predict", "--run", str(folder / "run"), "--out", str(tmp_path / "out"), str(image)])
    assert "scan[red].nii.gz: " in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["predictions"][0]["image"] == str(image)

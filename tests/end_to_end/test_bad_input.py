"""Faulty data, configurations and run folders for `train` and `plan`: one line that helps, exit code 2, no remains."""

import gzip
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lampseg.cli import main
from tests.end_to_end.small import SHAPE, files_of, refused, save, write_config, write_dataset
from tests.limits import no_space_beyond

Capture = pytest.CaptureFixture[str]
IMAGE, LABEL = "imagesTr/c1.nii.gz", "labelsTr/c1.nii.gz"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A faultless dataset."""
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, Path]:
    """A configuration and the run folder of its training."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder / "config.yaml", data)
    main(["train", str(config), "--run", str(folder / "run")])
    return config, folder / "run"


@pytest.fixture
def run(finished: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A configuration and a copy of its finished run, to be damaged."""
    config, folder = finished
    return config, Path(shutil.copytree(folder, tmp_path / "run"))


def cut(path: Path, share: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def with_nan() -> Any:
    array = np.zeros(SHAPE, np.float32)
    array[1, 2, 3] = np.nan
    return array


DATA_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing image": (lambda d: (d / IMAGE).unlink(), r"dataset\.json: 1 listed file\(s\) missing: .*c1\.nii\.gz; add"),
    "missing label": (lambda d: (d / LABEL).unlink(), r"missing: .*labelsTr/c1\.nii\.gz; add or unlist"),
    "truncated image": (
        lambda d: cut(d / IMAGE, 0.7),
        r"imagesTr/c1\.nii\.gz: damaged or cut short .*download it again",
    ),
    "truncated label": (lambda d: cut(d / LABEL, 0.7), r"labelsTr/c1\.nii\.gz: damaged or cut short .*download"),
    "no image at all": (lambda d: (d / IMAGE).write_bytes(b"text" * 99), r"c1\.nii\.gz: not a NIfTI file .*convert it"),
    "packed text": (lambda d: (d / IMAGE).write_bytes(gzip.compress(b"text" * 99)), r"c1\.nii\.gz: not a NIfTI file"),
    "empty image": (lambda d: (d / IMAGE).write_bytes(b""), r"c1\.nii\.gz: not a NIfTI file"),
    "4D image": (
        lambda d: save(d / IMAGE, np.zeros((*SHAPE, 2), np.float32)),
        r"2 channel\(s\), but the dataset names 1 \(image\).*keep",
    ),
    "2D image": (lambda d: save(d / IMAGE, np.zeros((16, 16), np.float32)), "2D, shape 16x16, but a 3D volume"),
    "NaN": (lambda d: save(d / IMAGE, with_nan()), r"c1\.nii\.gz: 1 of 4096 voxels are NaN or infinite; replace"),
    "other shape": (
        lambda d: save(d / LABEL, np.zeros((16, 16, 15), np.uint8)),
        "16x16x15, but its image has 16x16x16",
    ),
    "other affine": (
        lambda d: save(d / LABEL, np.zeros(SHAPE, np.uint8), np.diag([2, 1, 1, 1])),
        r"labelsTr/c1\.nii\.gz: affine .*differs from its image's .*; copy the image's header .* else resample",
    ),
    "label values": (
        lambda d: save(d / LABEL, np.full(SHAPE, 7, np.uint8)),
        "4096 voxels hold 7, but .*add the missing",
    ),
    "no case": (lambda d: listing(d, training=[]), r"dataset\.json: `training` lists no case; list at least one"),
    "no listing": (
        lambda d: (d / "dataset.json").unlink(),
        r"no dataset is recognised here.*imagesTr is here, but dataset\.json is missing",
    ),
    "broken listing": (lambda d: (d / "dataset.json").write_text('{"labels":'), "not valid JSON .*line 1 column"),
    "nothing drawn": (
        lambda d: [save(d / f"labelsTr/c{i}.nii.gz", np.zeros(SHAPE, np.uint8)) for i in range(3)],
        r"none of the 2 training cases has an annotated voxel of any organ \(a, b\); check the label files",
    ),
}


def listing(root: Path, **changes: Any) -> None:
    path = root / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", DATA_FAULTS)
def test_faulty_data(name: str, data: Path, tmp_path: Path, capsys: Capture) -> None:
    spoil, message = DATA_FAULTS[name]
    root = Path(shutil.copytree(data, tmp_path / "data"))
    spoil(root)
    config = write_config(tmp_path / "config.yaml", root)
    said = refused(capsys, "train", config, "--run", tmp_path / "run")
    assert re.search(message, said), said
    assert files_of(tmp_path / "run") == []
    shutil.rmtree(root)
    shutil.copytree(data, root)
    main(["train", str(config), "--run", str(tmp_path / "run"), "--curriculum.0.steps", "1"])  # mended: same folder
    assert (tmp_path / "run" / "best.json").exists()


CONFIG_FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown network": ({"network": {"name": "unett"}}, r"network\.name: `unett` is unknown; did you mean `unet`\?"),
    "unknown class": (
        {"network": {"name": "monai.networks.nets.DynUnett"}},
        r"has no class `DynUnett`; did you mean `monai\.networks\.nets\.DynUnet`\?",
    ),
    "network kwargs": ({"network": {"kwargs": {"bloks": 2}}}, "network: unet.*unexpected keyword argument 'bloks'"),
    "patch too large": (
        {"curriculum": [{"patch": 8, "steps": 1}, {"patch": [8, 32, 8], "steps": 1}]},
        r"curriculum\.1\.patch: .*larger than every volume.*16.*smaller patch",
    ),
    "patch and stride": (
        {"network": {"depth": 2}, "curriculum": [{"patch": [8, 6, 8], "steps": 1}]},
        r"curriculum\.0\.patch: \[8, 6, 8\] is not a multiple of the network's total stride \[4, 4, 4\]: .*\[8, 8, 8\]",
    ),
    "one voxel left": (
        {"network": {"depth": 3}},
        r"curriculum\.0 \(patch 8\): .*shrink to a single one .*larger patch, for instance \[16, 16, 16\]",
    ),
    "one voxel left, batch norm": (
        {"network": {"depth": 3, "norm": "batch"}, "curriculum": [{"patch": 8, "steps": 1}]},
        r"curriculum\.0 \(patch 8\): .*shrink to a single one",
    ),
    "whole volumes too small": (
        {"network": {"depth": 4}, "curriculum": [{"patch": "whole", "steps": 1}]},
        r"curriculum\.0 \(patch whole\): .*\[16, 16, 16\] voxels shrink to a single one .*network\.depth",
    ),
    "too little memory": (
        {"parallel": {"devices": "2x10KiB"}},
        r"curriculum\.0 \(patch 8\): .*does not fit: .*they have 10 KiB, 10 KiB.*What each change",
    ),
    "too many devices": ({"parallel": {"devices": 500}}, "500 devices: .*at most [0-9]+ stages.*ask for fewer devices"),
    "class of network": ({"network": {"name": "os.path.join"}}, "is a function, not a torch.nn.Module class"),
    "far too fine": (
        {"data": {"spacing": [1e-4, 1e-4, 1e-4]}},
        r"data\.spacing: .*150001x150001x150001.*larger spacings",
    ),
}


@pytest.mark.parametrize("name", CONFIG_FAULTS)
def test_configurations_that_do_not_go_with_the_data(name: str, data: Path, tmp_path: Path, capsys: Capture) -> None:
    """`plan` says the same as `train`, from the headers alone."""
    sections, message = CONFIG_FAULTS[name]
    config = write_config(tmp_path / "config.yaml", data, **sections)
    said = refused(capsys, "train", config, "--run", tmp_path / "run")
    assert re.search(message, said), said
    assert files_of(tmp_path / "run") == []
    planned = refused(capsys, "plan", config)
    assert re.search(message, planned), planned


ONLY_TRAINING: dict[str, tuple[dict[str, Any], str]] = {
    "class weights": (
        {"loss": {"class_weights": [1, 2]}},
        r"loss\.class_weights: 2 weights for 3 .*\(background, a, b\)",
    ),
    "optimizer option": ({"optimizer": {"kwargs": {"alfa": 1}}}, "no option `alfa` here: did you mean `alpha`"),
    "optimizer value": (
        {"optimizer": {"kwargs": {"alpha": -1}}},
        r"optimizer\.kwargs: RMSprop refuses .*Invalid alpha",
    ),
    "optimizer lr": ({"optimizer": {"kwargs": {"lr": 1}}}, "no option `lr` here: .*set by `curriculum`"),
    "diverging": (
        {"curriculum": [{"patch": 8, "batch": 2, "steps": 9, "lr": 1e30}]},
        r"the loss is nan at step \d.*: lower curriculum\.0\.lr",
    ),
}


@pytest.mark.parametrize("name", ONLY_TRAINING)
def test_configurations_that_cannot_be_trained(name: str, data: Path, tmp_path: Path, capsys: Capture) -> None:
    sections, message = ONLY_TRAINING[name]
    config = write_config(tmp_path / "config.yaml", data, **sections)
    said = refused(capsys, "train", config, "--run", tmp_path / "run")
    assert re.search(message, said), said
    assert not (tmp_path / "run" / "best.json").exists()


def test_a_volume_smaller_than_the_others_that_the_network_cannot_take(
    data: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The plan is made for the largest volume; a small one must not end the training half-way."""
    root = Path(shutil.copytree(data, tmp_path / "data"))
    for kind, dtype in (("image", np.float32), ("label", np.uint8)):
        save(root / f"{kind}sTr/c1.nii.gz", np.ones((7, 8, 5), dtype))
    sections: dict[str, Any] = {"network": {"depth": 3}, "data": {"validation": 0}}
    config = write_config(tmp_path / "c.yaml", root, curriculum=[{"patch": "whole", "steps": 5}], **sections)
    assert "[8, 8, 8] voxels shrink to a single one" in refused(capsys, "train", config, "--run", tmp_path / "run")


RUN_FOLDERS = {
    "the folder of a run": ("run", [], "already holds a run; continue it with --resume or choose another"),
    "a folder with other files": ("other", [], r"is not empty \(there is thesis\.doc\); choose a new or empty folder"),
    "a file": ("file", [], "is a file; choose a folder for --run"),
    "below a file": ("file/run", [], "cannot be written .*; free space or choose another folder for --run"),
    "where nobody may write": ("/proc/lampseg-run", [], "cannot be written"),
    "nothing to resume": ("new", ["--resume"], r"there is no run to resume \(no config\.yaml\); leave out --resume"),
    "another network": (
        "run",
        ["--resume", "--network.filters", "4"],
        r"`network\.filters` was 2, now 4\. Resume with",
    ),
    "another rate": ("run", ["--resume", "curriculum.0.lr=0.5"], r"`curriculum\.0\.lr` was 0\.001, now 0\.5"),
}


@pytest.mark.parametrize("name", RUN_FOLDERS)
def test_run_folders(name: str, run: tuple[Path, Path], capsys: Capture) -> None:
    folder, options, message = RUN_FOLDERS[name]
    config, there = run
    (there.parent / "other").mkdir()
    (there.parent / "other" / "thesis.doc").touch()
    (there.parent / "file").touch()
    before = files_of(there.parent)
    said = refused(capsys, "train", config, "--run", there.parent / folder, *options)
    assert re.search(message, said), said
    assert files_of(there.parent) == before
    assert not (there.parent / "new").exists()
    assert not (there.parent / "other" / "preprocessed").exists()


def test_a_disk_that_is_full_when_the_run_begins(finished: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    config, _ = finished
    with no_space_beyond(200):
        said = refused(capsys, "train", config, "--run", tmp_path / "run")
    assert re.search(r"preprocessed: the preprocessed case c\d cannot be written .*free disk space", said), said
    assert not (tmp_path / "run" / "config.yaml").exists()
    main(["train", str(config), "--run", str(tmp_path / "run")])  # with space again it can begin there


def test_a_disk_that_fills_up_in_training(finished: tuple[Path, Path], tmp_path: Path, capsys: Capture) -> None:
    """What is there is whole, and --resume ends where the undisturbed run ended."""
    config, whole = finished
    run = tmp_path / "run"
    cache = ("--data.cache", whole / "preprocessed")
    with no_space_beyond(5000):
        said = refused(capsys, "train", config, "--run", run, *cache)
    assert re.search(r"checkpoints/.*safetensors: cannot be written .*; free space, then continue with --resume", said)
    assert not any("checkpoints" in name for name in files_of(run))
    main(["train", str(config), "--run", str(run), "--resume", *(str(part) for part in cache)])
    name = "checkpoints/best.safetensors"
    assert (run / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize("file", ["network.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("fault", ["cut", "missing content"])
def test_a_damaged_checkpoint(file: str, fault: str, run: tuple[Path, Path], capsys: Capture) -> None:
    """The message says what to do, and doing it works."""
    config, folder = run
    damaged = folder / "checkpoints" / "step-00000002" / file
    damaged.write_bytes(damaged.read_bytes()[:10] if fault == "cut" else b"{}")
    said = refused(capsys, "train", config, "--run", folder, "--resume")
    assert re.search(r"step-00000002: not a complete checkpoint .*; remove this folder; --resume then continues", said)
    shutil.rmtree(damaged.parent)
    main(["train", str(config), "--run", str(folder), "--resume"])
    assert damaged.exists()


@pytest.mark.parametrize("rest", [b'{"step": 3, "lo', b"\xff\xfe\n[1]\n7\n"])
def test_a_torn_journal_is_mended_on_resume(rest: bytes, run: tuple[Path, Path]) -> None:
    config, folder = run
    journal = folder / "metrics.jsonl"
    before = journal.read_bytes()
    journal.write_bytes(before + rest)
    main(["train", str(config), "--run", str(folder), "--resume"])
    assert journal.read_bytes() == before

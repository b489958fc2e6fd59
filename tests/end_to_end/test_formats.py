"""One phantom in four other layouts, trained on through the command: a 4D MSD task, nnU-Net's raw folder, HaN."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

from lampseg.data import Case, Dataset, read_dataset, read_volume
from lampseg.data.formats.organs import ORGANS
from tests.end_to_end.command import lampseg, losses, train
from tests.end_to_end.small import refused
from tests.unit.format_folders import describe, write_npy, write_nrrd

VOXEL_SIZE = (5.0, 5.0, 5.0)
"""Of the phantom, in mm."""


def volumes(case: Case) -> tuple[Any, Any, Any]:
    """Scan and label map (X, Y, Z) of a phantom's case, and their affine."""
    assert case.label is not None
    scan, label = nibabel.load(case.image), nibabel.load(case.label)
    return np.asarray(scan.dataobj), np.asarray(label.dataobj), scan.affine


def write_nifti(path: Path, array: Any, affine: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)
    return path


def windows(scan: Any) -> list[Any]:
    """Two channels: the scan as it is, and its bones."""
    return [scan, np.where(scan > 200, scan, 200).astype(np.int16)]


def msd_task(phantom: Dataset, root: Path) -> Path:
    """Images of two channels in one 4D file; floating-point labels."""
    listed: dict[str, list[Any]] = {"Tr": [], "Ts": []}
    for part, cases in (("Tr", phantom.training), ("Ts", phantom.test)):
        for case in cases:
            scan, label, affine = volumes(case)
            write_nifti(root / f"images{part}/{case.id}.nii.gz", np.stack(windows(scan), axis=-1), affine)
            write_nifti(root / f"labels{part}/{case.id}.nii.gz", label.astype(np.float32), affine)
            (root / f"images{part}/._{case.id}.nii.gz").write_bytes(b"\0\5\26\7")
            listed[part].append(
                {"image": f"./images{part}/{case.id}.nii.gz", "label": f"./labels{part}/{case.id}.nii.gz"}
            )
    labels = {str(value): name for value, name in enumerate(phantom.classes)}
    modality = {"0": "CT", "1": "bone"}
    return describe(root, modality=modality, labels=labels, training=listed["Tr"], test=listed["Ts"])


def nnunet_raw(phantom: Dataset, root: Path) -> Path:
    """A file for each of two channels."""
    for case in phantom.training:
        scan, label, affine = volumes(case)
        for number, channel in enumerate(windows(scan)):
            write_nifti(root / f"imagesTr/{case.id}_{number:04d}.nii.gz", channel, affine)
        write_nifti(root / f"labelsTr/{case.id}.nii.gz", label, affine)
    absent = {case.id: [phantom.classes[c] for c in missing(case)] for case in phantom.training if missing(case)}
    assert absent
    return describe(
        root,
        channel_names={"0": "CT", "1": "bone"},
        labels={name: value for value, name in enumerate(phantom.classes)},
        numTraining=len(phantom.training),
        file_ending=".nii.gz",
        not_annotated=absent,
    )


def pddca(phantom: Dataset, root: Path) -> Path:
    """NRRD, a mask for every organ that was drawn."""
    for number, case in zip((1, 2, 3, 330, 600), (*phantom.training, *phantom.test), strict=True):
        folder = root / f"0522c{number:04d}"
        scan, label, affine = volumes(case)
        write_nrrd(folder / "img.nrrd", scan, affine)
        for index, organ in enumerate(ORGANS, start=1):
            if index not in missing(case):
                write_nrrd(folder / f"structures/{organ}.nrrd", (label == index).astype(np.uint8), affine)
    return root


def anatomynet(phantom: Dataset, root: Path) -> Path:
    """The same as .npy files, z, y, x: scans are turned to left, posterior, superior, and their affines are lost."""
    for folder in sorted(pddca(phantom, root / "nrrd").iterdir()):
        for path in (folder / "img.nrrd", *(folder / "structures").iterdir()):
            volume = read_volume(path)
            target = root / "npy" / folder.name / path.relative_to(folder).with_suffix("")
            write_npy(Path(f"{target}_crp_v2.npy"), volume.array[0].astype(np.int16), volume.affine)
    return root / "npy"


def missing(case: Case) -> list[int]:
    return [] if case.annotated is None else [c for c in range(1, len(ORGANS) + 1) if c not in case.annotated]


def write_config(path: Path, root: Path) -> Path:
    tree = {
        "network": {"name": "unet", "filters": 2, "norm": "instance", "depth": 2, "stem_stride": 1},
        "data": {
            "root": str(root),
            "window": [-160, 240],
            "validation": 0.3,
            "spacing": [8, 8, 8],
            "voxel_size": list(VOXEL_SIZE),
        },
        "curriculum": [{"patch": 16, "batch": 2, "steps": 2}],
    }
    path.write_text(yaml.safe_dump(tree))
    return path


def on_the_same_grid(written: Path, image: Path) -> bool:
    label, scan = nibabel.load(written), read_volume(image, voxel_size=VOXEL_SIZE)
    assert np.issubdtype(label.get_data_dtype(), np.integer)
    assert label.shape == scan.shape
    np.testing.assert_allclose(label.affine, scan.affine, atol=1e-4)
    return True


@pytest.mark.parametrize("write", [msd_task, nnunet_raw, pddca, anatomynet])
def test_trains_on_it(phantom: Dataset, tmp_path: Path, write: Callable[[Dataset, Path], Path]) -> None:
    root = write(phantom, tmp_path / "data")
    run = train(write_config(tmp_path / "config.yaml", root), tmp_path / "run", devices=1)
    assert len(losses(run)) == 2
    assert np.isfinite(losses(run)).all()
    task = json.loads((run / "task.json").read_text())
    assert task["channels"] == (["CT"] if write in (pddca, anatomynet) else ["CT", "bone"])
    split = json.loads((run / "split.json").read_text())
    assert len(split["training"]) + len(split["validation"]) == 4
    dataset = read_dataset(root)
    assert sorted(split["test"]) == sorted(case.id for case in dataset.test)
    prepared = [json.loads(path.read_text()) for path in (run / "preprocessed").glob("*/case.json")]
    assert any(len(facts["key"]["annotated"]) < len(ORGANS) for facts in prepared) == (write is not msd_task)

    if write is nnunet_raw:
        return  # a case of several files
    out = tmp_path / "out"
    image = dataset.test[0].image
    lampseg("predict", "--run", run, "--out", out, "--devices", "1", image)
    assert on_the_same_grid(out / f"{dataset.test[0].id}.nii.gz", image)
    if write is msd_task:
        lampseg("evaluate", "--predictions", out, "--labels", root, "--out", tmp_path / "scores")
        assert "BrainStem" in (tmp_path / "scores/evaluation.csv").read_text()


def test_random_test_cases_and_a_recorded_split(phantom: Dataset, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.yaml", phantom.root)
    drawn = train(config, tmp_path / "drawn", "--data.test_cases=1", "--data.split_seed=3", devices=1)
    split = json.loads((drawn / "split.json").read_text())
    assert [len(split[part]) for part in ("training", "validation", "test")] == [2, 1, 1]
    again = train(config, tmp_path / "again", f"--data.split={drawn / 'split.json'}", "--seed=8", devices=1)
    assert json.loads((again / "split.json").read_text()) == split
    recorded = yaml.safe_load((drawn / "config.yaml").read_text())["data"]
    assert (recorded["test_cases"], recorded["split_seed"]) == (1, 3)


def test_files_without_a_channel_are_refused_before_training(
    phantom: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = msd_task(phantom, tmp_path / "data")
    first = phantom.training[0]
    shutil.copy(first.image, root / f"imagesTr/{first.id}.nii.gz")
    config = write_config(tmp_path / "config.yaml", root)
    message = r"1 channel(s), but the dataset names 2 (CT, bone)"
    assert message in refused(
        capsys, "train", config, "--run", tmp_path / "run", "--devices", "1", "--data.validation", "0"
    )
    assert message in refused(capsys, "plan", config, "--devices", "1x8GiB", "--data.validation", "0")
    above = refused(capsys, "plan", config, "--devices", "1x8GiB", "--data.root", str(tmp_path))
    assert "no dataset is recognised here. Looked for: " in above
    assert f"{root} would be right" in above

"""`lampseg inspect`: tables and JSON of a phantom and of a DICOM export, faulty cases, several processes, Ctrl-C."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lampseg.data import Dataset
from lampseg.evaluation.tables import write_text
from tests.dicom_files import NAME, PATIENT, write_series, write_structures
from tests.end_to_end.command import LAMPSEG, Running, gone, lampseg, running
from tests.end_to_end.command import _children as children

Capture = pytest.CaptureFixture[str]


def inspected(capsys: Capture, *arguments: str | Path) -> dict[str, Any]:
    """What `--json` prints."""
    capsys.readouterr()
    lampseg("inspect", *arguments, "--json", "--jobs", "1")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_phantom_as_json(phantom: Dataset, capsys: Capture) -> None:
    found = inspected(capsys, phantom.root, "--networks", "unet-2", "--spacing", "8", "8", "8")
    assert found["version"] == 1
    cases = (*phantom.training, *phantom.test)
    assert [case["id"] for case in found["cases"]] == [case.id for case in cases]
    for case, told in zip(cases, found["cases"]):
        assert case.label is not None
        label = nib.as_closest_canonical(nib.load(case.label))
        array = np.asarray(label.dataobj)
        assert told["shape"] == list(array.shape)
        assert told["spacing"] == [5, 5, 5]
        for index, organ in enumerate(phantom.classes[1:], start=1):
            there = np.argwhere(array == index)
            assert (organ in told["organs"]) == bool(len(there))
            if len(there):
                assert told["organs"][organ]["voxels"] == len(there)
                assert told["organs"][organ]["box_voxels"] == (np.ptp(there, axis=0) + 1).tolist()
        assert sum(organ["voxels"] for organ in told["organs"].values()) == np.count_nonzero(array)
    missing = {s["name"]: s["not_annotated"] for s in found["per_class"]}
    for index, organ in enumerate(phantom.classes[1:], start=1):
        expected = [c.id for c in phantom.training if c.annotated is not None and index not in c.annotated]
        assert missing[organ] == expected
    sizes = [np.prod(case["shape"]) for case in found["cases"]]
    assert found["largest"]["id"] == found["cases"][int(np.argmax(sizes))]["id"]
    assert [m["shape"] for m in found["memory"]] == [
        [64, 64, 64]
    ] * 2  # at 8 mm at most 36 voxels, padded to the stride
    assert found["memory"][0]["peak_bytes"] > found["memory"][1]["peak_bytes"] > 0
    assert found["memory"][0]["devices"] == {"16GiB": 1, "24GiB": 1, "40GiB": 1, "80GiB": 1}
    assert found["suggestions"]["spacing"] == [5, 5, 5]
    low, high = found["suggestions"]["window"]
    assert -200 < low < 0 < high < 1500
    assert found["faulty"] == []


def test_tables_and_a_file(phantom: Dataset, tmp_path: Path, capsys: Capture) -> None:
    lampseg("inspect", phantom.root, "--networks", "unet-2", "--jobs", "1", "--out", tmp_path / "new" / "found.json")
    text = capsys.readouterr().out
    for expected in (
        "Phantom: 4 training cases, 1 test case, 1 channel, 9 organs",
        "head_000",
        "Mandible",
        "99.5%",
        "The largest volume is",
        "unet-2",
        "spacing: [5, 5, 5]",
        f"root: {phantom.root}",
    ):
        assert expected in text
    assert json.loads((tmp_path / "new" / "found.json").read_text())["dataset"] == "Phantom"


def test_faulty_cases_are_listed_and_the_rest_goes_on(phantom: Dataset, tmp_path: Path, capsys: Capture) -> None:
    root = tmp_path / "data"
    shutil.copytree(phantom.root, root)
    first, second = phantom.training[:2]
    (root / "imagesTr" / first.image.name).write_bytes(b"text")
    label = root / "labelsTr" / second.image.name
    label.write_bytes(label.read_bytes()[:-200])
    with pytest.raises(SystemExit) as ended:
        lampseg("inspect", root, "--networks", "none", "--jobs", "1", "--out", tmp_path / "found.json")
    assert ended.value.code == 3
    output = capsys.readouterr()
    assert "2 cases could not be read, and left out above" in output.out
    lines = output.err.splitlines()
    assert lines[0].startswith(f"{first.id}: ")
    assert "not a NIfTI file" in lines[0]
    assert lines[1].startswith(f"{second.id}: ")
    assert "damaged or cut short" in lines[1]
    tree = json.loads((tmp_path / "found.json").read_text())
    assert [each["id"] for each in tree["faulty"]] == [first.id, second.id]
    assert len(tree["cases"]) == 3
    assert tree["memory"] == []


def test_nothing_that_can_be_read(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.nii").write_bytes(b"text")
    tree = {"labels": {"0": "background", "1": "liver"}, "training": [{"image": "a.nii", "label": "a.nii"}]}
    write_text(tmp_path / "dataset.json", json.dumps(tree))
    with pytest.raises(SystemExit) as ended:
        lampseg("inspect", tmp_path)
    assert ended.value.code == 2
    assert "none of its 1 case(s) can be read; a: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--jobs", "0"], "--jobs: 0 is not"),
        (["--networks", "vnet-3"], "--networks: `vnet-3` is not"),
        (["--spacing", "1", "0", "1"], "--spacing: [1.0, 0.0, 1.0] is not three sizes in mm above 0"),
        (["--json", "--out", "a.json"], "give one of them"),
        (["--data.root", "x"], "unknown option --data.root"),
    ],
)
def test_options_that_are_refused(phantom: Dataset, options: list[str], message: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as ended:
        lampseg("inspect", phantom.root, *options)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_processes_do_not_change_the_result(phantom: Dataset, tmp_path: Path, capsys: Capture) -> None:
    alone = inspected(capsys, phantom.root, "--networks", "none")
    lampseg("inspect", phantom.root, "--networks", "none", "--jobs", "2", "--out", tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text()) == alone


def test_a_dicom_export(tmp_path: Path, capsys: Capture) -> None:
    """Series and structure sets in folders named after the patient, of whom nothing is told."""
    rng = np.random.default_rng(0)
    root = tmp_path / "export"
    for series in (11, 12, 13):
        stored = rng.integers(0, 2000, (12, 10, 8)).astype(np.uint16)
        paths = write_series(root / NAME / f"s{series}", stored, series=series, spacing=(1, 2, 3))
        corners = [(0.5, 1), (4.5, 1), (4.5, 9), (0.5, 9)]
        contours = [np.array([(-x, -y, 3 * k) for x, y in corners]) for k in (2, 3)]
        if series != 13:
            write_structures(root / NAME / f"rs{series}.dcm", [("Cord", contours)], series=series)
    paths[2].unlink()
    out = tmp_path / "found.json"
    with pytest.raises(SystemExit) as ended:
        lampseg("inspect", root, "--jobs", "1", "--networks", "none", "--out", out)
    assert ended.value.code == 3
    output = capsys.readouterr()
    assert "series-003-n13: CT series number 13 ('neck', 7 files): 1 slice(s) missing" in output.err
    assert NAME not in output.out
    tree = json.loads(out.read_text())
    assert tree["classes"] == ["background", "Cord"]
    assert [case["shape"] for case in tree["cases"]] == [[12, 10, 8]] * 2
    assert [case["spacing"] for case in tree["cases"]] == [[1, 2, 3]] * 2
    assert [case["organs"]["Cord"]["voxels"] for case in tree["cases"]] == [4 * 4 * 2] * 2
    assert tree["cases"][0]["organs"]["Cord"]["box_mm"] == [4, 8, 6]
    assert "1 slice(s) missing" in tree["faulty"][0]["error"]
    for private in (NAME, PATIENT, str(tmp_path)):
        assert private not in out.read_text()


def with_workers(started: Running) -> list[int]:
    """Waits for two processes that measure, and multiprocessing's resource tracker."""
    found: list[int] = []

    def at_work() -> bool:
        found[:] = children(started.process.pid)
        return len(found) >= 3

    started.until(at_work)
    return found


def test_ctrl_c_ends_all_processes(phantom: Dataset, tmp_path: Path) -> None:
    """In the midst of measuring."""
    command = [*LAMPSEG, "inspect", phantom.root, "--networks", "none", "--jobs", "2"]
    with running(command, folder=tmp_path / "run") as started:
        workers = with_workers(started)
        for pid in (*workers, started.process.pid):  # as a terminal does
            os.kill(pid, signal.SIGINT)
        finished = started.finish(limit=60)
    assert finished.code == 130
    assert finished.err == ""
    assert gone(workers)


def test_a_process_that_is_killed(phantom: Dataset, tmp_path: Path) -> None:
    """As the operating system does when memory runs out."""
    command = [*LAMPSEG, "inspect", phantom.root, "--networks", "none", "--jobs", "2"]
    with running(command, folder=tmp_path / "run") as started:
        workers = with_workers(started)
        for pid in workers:
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        finished = started.finish(limit=60)
    assert finished.code == 2
    assert "most likely for want of memory; use --jobs 1" in finished.err
    assert gone(workers)

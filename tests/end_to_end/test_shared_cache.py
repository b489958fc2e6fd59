"""Preparing in several processes, killed ones among them: nothing is half done, and nobody disturbs another."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lampseg.config import DataConfig
from lampseg.data import Case, PreparedCase, prepare
from lampseg.errors import UserError

CLASSES = 3


def write_cases(folder: Path, count: int, *, edge: int = 24) -> list[Case]:
    for number, case in enumerate(cases_of(folder, count)):
        rng = np.random.default_rng(number)
        arrays = rng.normal(size=(edge, edge, edge)), rng.integers(0, CLASSES, (edge, edge, edge))
        for path, array in zip(case.files, arrays):
            nib.save(nib.Nifti1Image(array.astype(np.float32), np.diag([1, 1.5, 2, 1])), path)
    return cases_of(folder, count)


def cases_of(folder: Path, count: int) -> list[Case]:
    names = [f"case{number}" for number in range(count)]
    return [Case(name, (folder / f"{name}.image.nii",), folder / f"{name}.label.nii", None) for name in names]


def data(**fields: Any) -> DataConfig:
    return DataConfig(root=Path("unused"), **fields)


def contents(ready: PreparedCase) -> list[Any]:
    assert ready.points is not None
    with np.load(ready.points) as points:
        return [ready.image_part(), ready.label_part(), *(points[name] for name in sorted(points))]


KILLED = """
import os, signal, sys
from pathlib import Path
from lampseg.data import preprocess
from tests.end_to_end.test_shared_cache import CLASSES, cases_of, data
count = 0
def dying(path, array, original=preprocess.write_array):
    global count
    count += 1
    original(path, array)
    if count == int(sys.argv[2]):
        with open(path, "r+b") as file:
            file.truncate(100)
        os.kill(os.getpid(), signal.SIGKILL)
preprocess.write_array = dying
folder = Path(sys.argv[1])
preprocess.prepare(cases_of(folder, 2), classes=CLASSES, data=data(), folder=folder / "cache")
"""


@pytest.mark.parametrize("at", [2, 3])
def test_a_killed_process_leaves_no_half_case(at: int, tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 2)
    expected = [contents(case) for case in prepare(cases, classes=CLASSES, data=data(), folder=tmp_path / "other")]
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, str(at)], check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (tmp_path / "cache").iterdir())
    assert [name.endswith(".partial") for name in left] == ([True] if at == 2 else [True, False])
    again = prepare(cases, classes=CLASSES, data=data(), folder=tmp_path / "cache")
    for case, wanted in zip(again, expected):
        for found, array in zip(contents(case), wanted, strict=True):
            np.testing.assert_array_equal(found, array)
    assert len(list((tmp_path / "cache").iterdir())) == 2, "what was left half done is gone"


def test_a_process_killed_at_any_time(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 4, edge=40)
    code = (
        "import sys; from pathlib import Path; from lampseg.data import prepare; "
        "from tests.end_to_end.test_shared_cache import CLASSES, cases_of, data; "
        "folder = Path(sys.argv[1]); print(flush=True); "
        "prepare(cases_of(folder, 4), classes=CLASSES, data=data(), folder=folder / 'cache')"
    )
    for wait in (0.2, 3.0):
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait)
        process.kill()
        process.wait()
        process.stdout.close()
    ready = prepare(cases, classes=CLASSES, data=data(), folder=tmp_path / "cache")
    expected = prepare(cases, classes=CLASSES, data=data(), folder=tmp_path / "other")
    for case, wanted in zip(ready, expected):
        for found, array in zip(contents(case), contents(wanted), strict=True):
            np.testing.assert_array_equal(found, array)


RUN = """
import sys
from pathlib import Path
from lampseg.data import prepare
from tests.end_to_end.test_shared_cache import CLASSES, cases_of, contents, data
folder = Path(sys.argv[1])
for turn in range(6):
    low = turn % 2
    options = data(window=(low, low + 1))
    for case in prepare(cases_of(folder, 3), classes=CLASSES, data=options, folder=folder / "cache"):
        contents(case)
"""


def test_runs_that_share_a_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    """Two at once, each with two sets of options in turn."""
    cases = write_cases(tmp_path, 3)
    runs = [subprocess.Popen([sys.executable, "-c", RUN, tmp_path]) for _ in range(2)]
    assert [run.wait(timeout=150) for run in runs] == [0, 0]
    for low in (0, 1):
        (ready, *_) = prepare(cases, classes=CLASSES, data=data(window=(low, low + 1)), folder=tmp_path / "cache")
        stored = nib.as_closest_canonical(nib.load(cases[0].image)).get_fdata(dtype=np.float32)
        np.testing.assert_allclose(ready.image_part()[0], np.clip(stored - low, 0, 1), atol=1e-6)
    assert len(list((tmp_path / "cache").iterdir())) == 6


def test_processes_prepare_the_same(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 3)
    seen: list[str] = []
    several = prepare(cases, classes=CLASSES, data=data(jobs=2), folder=tmp_path / "several", on_case=seen.append)
    assert sorted(seen) == ["case0", "case1", "case2"]
    one = prepare(cases, classes=CLASSES, data=data(jobs=1), folder=tmp_path / "one")
    assert [case.id for case in several] == [case.id for case in one]
    for case, wanted in zip(several, one):
        for found, array in zip(contents(case), contents(wanted), strict=True):
            np.testing.assert_array_equal(found, array)


def test_a_fault_in_a_process_is_the_users_error(tmp_path: Path) -> None:
    cases = write_cases(tmp_path, 2)
    cases[1].image.write_bytes(b"text")
    with pytest.raises(UserError, match=r"case1\.image\.nii: not a NIfTI file"):
        prepare(cases, classes=CLASSES, data=data(jobs=2), folder=tmp_path / "cache")

"""How many processes prepare, and what is said when one of them is killed."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from lampseg.config import DataConfig
from lampseg.data import Case, prepare, prepare_jobs
from lampseg.errors import UserError


def cases(folder: Path, count: int) -> list[Case]:
    """Headers of 20x10x5 voxels of 2 mm, two channels each."""
    found = []
    for number in range(count):
        path = folder / f"{number}.nii"
        nib.save(nib.Nifti1Image(np.zeros((20, 10, 5, 2), np.uint8), np.diag([2, 2, 2, 1])), path)
        found.append(Case(str(number), (path,), None, None))
    return found


def data(**fields: Any) -> DataConfig:
    return DataConfig(root=Path("unused"), **fields)


def test_as_many_as_work_cores_and_memory_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    several = cases(tmp_path, 5)
    assert prepare_jobs.jobs_for(several, data()) == 1, "too little work"
    assert prepare_jobs.jobs_for(several, data(jobs=3)) == 3
    assert prepare_jobs.jobs_for(several, data(jobs=9)) == 5
    monkeypatch.setattr(prepare_jobs, "WORTH_IT", 5 * 2000)
    monkeypatch.setattr(prepare_jobs, "cores", lambda: 4)
    for free, expected in ((2**40, 4), (2 * 60 * 2000 * 3, 3), (1000, 1)):
        monkeypatch.setattr(prepare_jobs, "_free_memory", lambda free=free: free)
        assert prepare_jobs.jobs_for(several, data()) == expected
    monkeypatch.setattr(prepare_jobs, "_free_memory", lambda: 2 * 60 * 2000 * 8 * 2)
    assert prepare_jobs.jobs_for(several, data(spacing=(1, 1, 1))) == 2, "the network's grid is eight times as large"
    assert prepare_jobs.jobs_for(several[:2], data()) == 1
    assert prepare_jobs.jobs_for([], data()) == 1
    several[0].image.write_bytes(b"no header")
    assert prepare_jobs.jobs_for(several, data(spacing=(1, 1, 1))) == 2, "reading it will say what is wrong"


def test_free_memory_is_known_here() -> None:
    assert 2**20 < prepare_jobs._free_memory() < 2**60


def test_a_process_that_is_killed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, started = prepare_jobs._start, []

    def dying(jobs: int) -> Any:
        process = original(jobs)
        process.kill()
        process.wait()
        started.append(process)
        return process

    monkeypatch.setattr(prepare_jobs, "_start", dying)
    with pytest.raises(
        UserError, match=r"\d\.nii: the process that prepared it has ended \(exit code -9\), .*data\.jobs to 1"
    ):
        prepare(cases(tmp_path, 3), classes=2, data=data(jobs=2), folder=tmp_path / "cache")
    assert len(started) == 2

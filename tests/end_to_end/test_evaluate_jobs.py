"""`lampseg evaluate --jobs`: several processes write what one writes."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from lampseg.evaluation import evaluate
from tests.unit.test_evaluate import save


def test_several_processes_give_the_same(tmp_path: Path) -> None:
    """Spawned processes import the main module anew: that must not run the command again."""
    rng = np.random.default_rng(0)
    for case in range(3):
        truth = rng.integers(0, 3, (9, 8, 7)).astype(np.uint8)
        save(tmp_path / "labels" / f"case_{case}.nii.gz", truth)
        save(tmp_path / "predicted" / f"case_{case}.nii.gz", np.where(rng.random(truth.shape) < 0.8, truth, 0))
    folders = ["--predictions", "predicted", "--labels", "labels", "--out", "two"]
    done = subprocess.run(
        [sys.executable, "-m", "lampseg", "evaluate", *folders, "--metrics", "dice,hd95,nsd", "--jobs", "2"],
        cwd=tmp_path,
        env=os.environ,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("HD95 (mm)") == 1
    evaluate(tmp_path / "predicted", tmp_path / "labels", out=tmp_path / "one", metrics="dice,hd95,nsd")
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["evaluation.csv", "evaluation.json", "summary.csv", "summary.json"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()

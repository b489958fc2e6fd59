"""To try out faulty input quickly: a dataset of 16^3 voxels, a configuration, and what a refused command says."""

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import yaml

from lampseg.cli import main

SHAPE = (16, 16, 16)


def save(path: Path, array: Any, affine: Any = None) -> Path:
    """A NIfTI file, with voxels of 1 mm unless an affine is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def write_dataset(root: Path, *, cases: int = 3) -> Path:
    """Cases c0, c1, ... with two organs; nothing else."""
    rng = np.random.default_rng(0)
    label = np.zeros(SHAPE, np.uint8)
    label[2:8, 2:8, 2:8] = 1
    label[10:13, 10:13, 10:13] = 2
    training = []
    for index in range(cases):
        save(root / f"imagesTr/c{index}.nii.gz", (rng.normal(0, 10, SHAPE) + 50 * label).astype(np.float32))
        save(root / f"labelsTr/c{index}.nii.gz", label)
        training.append({"image": f"imagesTr/c{index}.nii.gz", "label": f"labelsTr/c{index}.nii.gz"})
    tree = {"labels": {"background": 0, "a": 1, "b": 2}, "training": training}
    (root / "dataset.json").write_text(json.dumps(tree))
    return root


def tree_for(root: Path, **sections: Any) -> dict[str, Any]:
    """A configuration that trains for two steps; a section given is merged into it, or replaces it if no mapping."""
    tree: dict[str, Any] = {
        "network": {"name": "unet", "filters": 2, "depth": 1, "stem_stride": 1, "norm": "instance"},
        "data": {"root": str(root), "window": [0, 100], "validation": 0.34},
        "curriculum": [{"patch": 8, "batch": 2, "steps": 2}],
        "parallel": {"devices": 1},
    }
    for name, content in sections.items():
        tree[name] = {**tree.get(name, {}), **content} if isinstance(content, dict) else content
    return tree


def write_config(path: Path, root: Path, **sections: Any) -> Path:
    path.write_text(yaml.safe_dump(tree_for(root, **sections)))
    return path


def refused(capture: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Runs a command that must end with exit code 2 and an explanation, one line or a list of remedies; returns it."""
    capture.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    out, err = capture.readouterr()
    assert ended.value.code == 2, f"{ended.value.code}: {err}"
    assert "Traceback" not in out + err
    assert err.startswith("lampseg: "), err
    assert len(err.strip().splitlines()) == 1 or "What each change alone would do:" in err, err
    return err.strip()


def files_of(folder: Path) -> list[str]:
    """Everything in a folder but the preprocessed volumes."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return sorted(str(path) for path in found if path.parts[0] != "preprocessed")

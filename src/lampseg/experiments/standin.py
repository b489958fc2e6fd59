"""The phantom in place of the paper's data, under its classes' names: to walk the whole path without a download."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from lampseg.data import Dataset, read_dataset, write_phantom
from lampseg.data.volume import save_nifti
from lampseg.evaluation.tables import write_text

LIVER = {"Mandible": "liver", "Parotid_L": "cancer"}
"""Organs of the phantom that stand for the liver's classes: a large one and a smaller one. Nothing else is alike."""
SPACING = {"han": 4.0, "liver": 4.0}


def write_standin(study: str, out: Path, *, cases: int, test: int, seed: int) -> Dataset:
    """Writes the phantom as `han`, or relabelled as `liver`; one that is there already is read again.

    Raises:
        UserError: `out` holds something else, or can't be written.
    """
    ready = out / "complete.json"
    if ready.is_file():
        return read_dataset(out)
    dataset = write_phantom(out, cases=cases, test=test, seed=seed, spacing=SPACING[study])
    if study == "liver":
        _relabel(dataset)
    write_text(ready, json.dumps({"study": study, "cases": cases, "test": test, "seed": seed}))
    return read_dataset(out)


def _relabel(dataset: Dataset) -> None:
    values = {dataset.classes.index(organ): n for n, organ in enumerate(LIVER, start=1)}
    table = np.array([values.get(value, 0) for value in range(len(dataset.classes))], np.uint8)
    for case in (*dataset.training, *dataset.test):
        assert case.label is not None
        image = nib.load(case.label)
        labels = table[np.asarray(image.dataobj).astype(np.intp)]
        save_nifti(case.label, nib.Nifti1Image(labels, image.affine, image.header))
    source = dataset.root / "dataset.json"
    tree = json.loads(source.read_text(encoding="utf-8"))
    tree["labels"] = {"0": "background", **{str(n): name for n, name in enumerate(LIVER.values(), start=1)}}
    for entry in tree["training"]:
        absent = [LIVER[name] for name in entry.pop("not_annotated", []) if name in LIVER]
        if absent and len(absent) < len(LIVER):
            entry["not_annotated"] = absent
    write_text(source, json.dumps(tree, indent=2) + "\n")

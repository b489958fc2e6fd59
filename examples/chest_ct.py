"""Converts the chest CT that slicerio ships (MIT licence) and its segmentation into the layout that lampseg reads.

    pip install 'lampseg[examples]'
    python examples/chest_ct.py --out chest-ct

The scan becomes one training case. Nothing that is learnt from one scan generalises: the example shows what a real
scan takes, from NRRD files to a prediction on the scan's own grid.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import nibabel as nib
import nrrd
import numpy as np
import numpy.typing as npt
import slicerio

Array = npt.NDArray[Any]
NAME = "CTChest4"
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""NRRD and DICOM count towards left and posterior, NIfTI towards right and anterior."""


def convert(out: Path) -> None:
    """Writes `out/dataset.json`, `out/imagesTr/CTChest4.nii.gz` (HU) and `out/labelsTr/CTChest4.nii.gz`."""
    shipped = Path(slicerio.__file__).parent / "data"
    voxels, header = nrrd.read(str(shipped / f"{NAME}.nrrd"))
    affine = affine_of(header)
    segmentation = slicerio.read_segmentation(str(shipped / "Segmentation.seg.nrrd"))
    if segmentation["voxels"].shape != voxels.shape or not np.allclose(segmentation["ijkToLPS"], LPS_TO_RAS @ affine):
        raise SystemExit(f"{shipped}: the segmentation lies on another grid than the scan")
    classes, labels = contiguous(segmentation)

    for folder, array in (("imagesTr", voxels.astype(np.int16)), ("labelsTr", labels)):
        (out / folder).mkdir(parents=True, exist_ok=True)
        image = nib.Nifti1Image(array, affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, out / folder / f"{NAME}.nii.gz")
    tree = {
        "name": "ChestCT",
        "reference": "slicerio (MIT licence), test data",
        "labels": {str(value): name for value, name in enumerate(classes)},
        "training": [{"image": f"./imagesTr/{NAME}.nii.gz", "label": f"./labelsTr/{NAME}.nii.gz"}],
        "test": [],
    }
    (out / "dataset.json").write_text(json.dumps(tree, indent=2) + "\n")


def affine_of(header: dict[str, Any]) -> Array:
    """The 4x4 matrix from voxel indices to mm (RAS+) that an NRRD header in LPS space describes."""
    if header["space"] != "left-posterior-superior":
        raise SystemExit(f"{NAME}.nrrd: space {header['space']!r}, expected left-posterior-superior")
    lps = np.eye(4)
    lps[:3, :3] = np.asarray(header["space directions"]).T  # one row per array axis
    lps[:3, 3] = header["space origin"]
    return LPS_TO_RAS @ lps


def contiguous(segmentation: dict[str, Any]) -> tuple[list[str], Array]:
    """Class names, background first, and the label map with the values 0, 1, 2, ... in that order."""
    labels = np.zeros(segmentation["voxels"].shape, np.uint8)
    classes = ["background"]
    for segment in segmentation["segments"]:
        labels[segmentation["voxels"] == segment["labelValue"]] = len(classes)
        classes.append(segment["name"].replace(" ", "_"))
    return classes, labels


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Converts slicerio's chest CT into the MSD layout.")
    parser.add_argument("--out", type=Path, default=Path("chest-ct"), help="folder to be made")
    out = parser.parse_args().out
    if (out / "dataset.json").exists():
        raise SystemExit(f"{out}: holds a data set already; remove it or choose another --out")
    convert(out)
    print(f"{out}: {NAME}, one case to train on")


if __name__ == "__main__":
    main()

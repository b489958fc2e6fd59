"""Peak host memory of `predict` on one image: run as a process of its own, whose largest resident size is read."""

import json
import resource
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from torch import Tensor, nn

from lampseg.config import DataConfig
from lampseg.data.back_to_grid import SLAB_VOXELS
from lampseg.inference import Result, segment_files

CLASSES = 10


class Elsewhere(nn.Module):
    """Logits that take no host memory, as those of a network on a GPU: what is measured is predict's own."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, CLASSES, -1, -1, -1)


class Pointwise(nn.Module):
    """One convolution of one voxel, on the CPU: its logits are in host memory."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Conv3d(1, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x)


def resident() -> dict[str, int]:
    """Bytes now, and at most so far."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"now": pages * resource.getpagesize(), "peak": peak}


NETWORKS = {"elsewhere": Elsewhere, "cpu": Pointwise}


def write_image(path: Path, edge: int, *, turned: bool = False) -> None:
    """A CT-like volume (int16) of voxels of 1 mm; turned: its axes run against RAS, and in another order."""
    rng = np.random.default_rng(0)
    plane = rng.integers(-1000, 1000, (edge, edge), dtype=np.int16)
    voxels = np.stack([np.roll(plane, n, axis=0) for n in range(edge)], axis=2)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    if turned:
        affine = np.array([[0, 0, -1, 0], [-1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


def predict(image: Path, out: Path, spacing: float, network: str) -> None:
    torch.manual_seed(0)
    data = DataConfig(root=out, window=(-160, 240), spacing=(spacing,) * 3)
    names = tuple(f"class {n}" for n in range(CLASSES))
    segment_files(NETWORKS[network](), [image], out=out, data=data, classes=names, result=Result(names))


def measure(folder: Path, edge: int, spacing: float, network: str) -> dict[str, Any]:
    """Peak growth of the resident size by `image.nii.gz`, over that after a small one, which loads the libraries."""
    torch.set_num_threads(1)
    write_image(folder / "small.nii.gz", 24)
    predict(folder / "small.nii.gz", folder / "warm", spacing, network)
    before = resident()
    predict(folder / "image.nii.gz", folder / "out", spacing, network)
    voxels = edge**3
    parts = {"image": 4 * voxels, "labels": voxels, "slab": 4 * CLASSES * min(SLAB_VOXELS, voxels)}
    grown = resident()["peak"] - before["now"]
    return {**parts, "all classes": 4 * CLASSES * voxels, "peak": grown, "ratio": grown / sum(parts.values())}


def main() -> None:
    folder, edge, spacing = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    print(json.dumps(measure(folder, edge, spacing, sys.argv[4])))


if __name__ == "__main__":
    main()

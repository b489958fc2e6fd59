"""Patches per second from the cache of preprocessed volumes, against reading the NIfTI files for every patch."""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage

from benchmarks.shared.results import circumstances, median, options, write
from lampseg.config import DataConfig
from lampseg.config_augmentation import AugmentationConfig
from lampseg.data import Case, PreparedCase, Sampler, image_to_network, prepare, read_label, read_volume
from lampseg.data.grid import to_grid

EDGE, QUICK_EDGE = 256, 48
PATCHES, QUICK_PATCHES = (64, 128), (16,)
CASES = 2
COUNT, QUICK_COUNT = 24, 2
ROUNDS, QUICK_ROUNDS = 3, 1
SPACING, WINDOW = (0.9, 0.9, 1.2), (-21.0, 89.0)
CLAIM = 10.0


def scan(folder: Path, name: str, edge: int, seed: int) -> Case:
    """A CT-like volume: smooth tissue with noise of 12 HU, as 16-bit integers, gzipped; and three organs."""
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(edge // 8,) * 3).astype(np.float32)
    smooth = ndimage.zoom(ndimage.gaussian_filter(coarse, 1.5), 8, order=1)
    tissue = 40 + 400 * smooth + rng.normal(0, 12, smooth.shape)
    label = np.digitize(smooth, np.quantile(smooth, [0.9, 0.96, 0.99])).astype(np.uint8)
    files = []
    for kind, array in (("image", np.rint(tissue).astype(np.int16)), ("label", label)):
        files.append(folder / f"{name}.{kind}.nii.gz")
        nib.save(nib.Nifti1Image(array, np.diag([*SPACING, 1])), files[-1])
    return Case(name, (files[0],), files[1], None)


def sampler(ready: tuple[PreparedCase, ...], patch: int, augmentation: str) -> Sampler:
    return Sampler(
        ready,
        patch=(patch,) * 3,
        batch=1,
        stride=(8, 8, 8),
        seed=0,
        stage=0,
        positive=1.0,
        class_balanced=True,
        augmentation=AugmentationConfig.model_validate(augmentation),
    )


def from_cache(drawn: Sampler, step: int) -> None:
    (draw,) = drawn.draws(step)
    drawn.image(draw)
    drawn.label(draw)


def from_nifti(drawn: Sampler, cases: tuple[Case, ...], data: DataConfig, step: int) -> None:
    """What a loader without a cache does: read, orient, resample and scale the volume, then cut the patch."""
    (draw,) = drawn.draws(step)
    case = cases[draw.case]
    assert case.label is not None
    volume = read_volume(case.image)
    image, _ = image_to_network(volume, data=data)
    label, _ = to_grid(read_label(case.label, classes=4, like=volume)[None], volume.affine, data, mode="nearest")
    region = tuple(slice(at, at + size) for at, size in zip(draw.corner, draw.size))
    np.ascontiguousarray(image[:, *region])
    np.ascontiguousarray(label.numpy()[:, *region])


def rate(load: Callable[[int], None], steps: range) -> float:
    """Patches per second."""
    begun = time.perf_counter()
    for step in steps:
        load(step)
    return len(steps) / (time.perf_counter() - begun)


def measure(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Every way in turn, several times; files that were just written are in the page cache for all of them."""
    edge = QUICK_EDGE if quick else EDGE
    cases = tuple(scan(folder, f"case{number}", edge, number) for number in range(CASES))
    found: dict[str, Any] = {"edge": edge, "patches": {}, "prepare_seconds": {}}
    ready: dict[str, tuple[PreparedCase, ...]] = {}
    ways = {"as stored": DataConfig(root=folder, window=WINDOW, jobs=1)}
    ways["resampled to 1 mm"] = DataConfig(root=folder, window=WINDOW, spacing=(1, 1, 1), jobs=1)
    for way, data in ways.items():
        begun = time.perf_counter()
        ready[way] = prepare(cases, classes=4, data=data, folder=folder / "cache")
        found["prepare_seconds"][way] = time.perf_counter() - begun
    found["bytes"] = {
        "nifti": sum(path.stat().st_size for case in cases for path in case.files),
        "cache": sum(path.stat().st_size for case in ready["as stored"] for path in case.image.parent.iterdir()),
        "memory": sum(5 * int(np.prod(case.shape)) for case in ready["as stored"]),
    }
    count, rounds = (QUICK_COUNT, QUICK_ROUNDS) if quick else (COUNT, ROUNDS)
    for way, data in ways.items():
        for patch in QUICK_PATCHES if quick else PATCHES:
            drawn = {name: sampler(ready[way], patch, name) for name in ("none", "liver", "han")}
            rates: dict[str, list[float]] = {name: [] for name in ("nifti", *drawn)}
            from_cache(drawn["han"], 0)  # imports
            for turn in range(rounds):
                load = partial(from_nifti, drawn["none"], cases, data)
                rates["nifti"].append(rate(load, range(turn, turn + 2)))
                for name, source in drawn.items():
                    steps = range(turn * count, (turn + 1) * count)
                    rates[name].append(rate(partial(from_cache, source), steps))
            found["patches"][f"{way}, {patch}^3"] = rates
            print(f"{way}, {patch}^3: " + ", ".join(f"{k} {median(v):.2f}" for k, v in rates.items()), flush=True)
    return found


def main() -> None:
    chosen = options(Path(__file__).parent, description=__doc__ or "")
    at = circumstances()
    with tempfile.TemporaryDirectory() as name:
        found = measure(Path(name), quick=chosen.quick)
    rows, factors = [], []
    for what, rates in found["patches"].items():
        nifti = median(rates["nifti"])
        factors.append(median(rates["none"]) / nifti)
        cells = [f"{median(rates[name]):.1f}" for name in ("none", "liver", "han")]
        rows.append([what, f"{nifti:.2f}", *cells, f"{factors[-1]:.0f}"])
    sizes = found["bytes"]
    summary = [
        f"patches from the cache, not augmented: {min(factors):.0f} to {max(factors):.0f} times as many a second as "
        f"from the NIfTI files (volumes of {found['edge']}^3; claimed: at least {CLAIM:.0f})",
        f"the cache takes {sizes['cache'] / sizes['nifti']:.2f} times the bytes of the gzipped files, "
        f"{sizes['cache'] / sizes['memory']:.2f} of the arrays in memory",
    ]
    write(
        chosen.out,
        "loading",
        title="Patches per second from the cache",
        summary=summary,
        tables=[
            (
                "Patches per second, image and label, one process (medians)",
                ["", "NIfTI", "cache", "and `liver`", "and `han`", "cache / NIfTI"],
                rows,
            )
        ],
        data=found,
        at=at,
    )


if __name__ == "__main__":
    main()

"""Whole-volume segmentation of cases on the network's grid, and their Dice: how the best model is chosen."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lampseg.data import PreparedCase
from lampseg.evaluation import Evaluation, dice_per_class
from lampseg.inference.segment import SlidingWindow, sliding_labels
from lampseg.parallel.model import ParallelModel
from lampseg.training.supervision import logits_of


def padded_shape(shape: Sequence[int], stride: Sequence[int], *, channels: int) -> tuple[int, ...]:
    """(1, C, X, Y, Z) of a volume padded at its ends to multiples of the network's stride."""
    return (1, channels, *(-(-size // step) * step for size, step in zip(shape, stride)))


def pad_volume(
    volume: np.ndarray,
    shape: tuple[int, ...],
    *,
    device: torch.device,
    dtype: torch.dtype,
    region: tuple[slice, ...] | None = None,
) -> Tensor:
    """The volume (C, X, Y, Z) in the corner of zeros of `shape` (1, C, X', Y', Z'); or a region of that."""
    region = region or tuple(slice(0, size) for size in shape[2:])
    x = torch.zeros((*shape[:2], *(part.stop - part.start for part in region)), dtype=dtype, device=device)
    inside = volume[:, *region]  # only these pages are read
    _, a, b, c = inside.shape
    x[0, :, :a, :b, :c] = torch.from_numpy(np.array(inside)).to(device, dtype)
    return x


def validate(
    model: ParallelModel,
    cases: Sequence[PreparedCase],
    *,
    classes: Sequence[str],
    stride: tuple[int, int, int],
    window: tuple[int, int, int] | None = None,
    dtype: torch.dtype,
) -> tuple[Evaluation, float]:
    """Dice of every case, segmented whole; and the seconds it took. The same on every rank.

    Each volume goes through the network in one pass, or in sliding windows of the only size that the network takes.
    Replicas share the cases.
    """
    world = model.world
    begun = time.perf_counter()
    order = [case.id for case in cases]
    cases = [cases[index] for index in model.mesh.spread(len(cases))]
    shapes = [padded_shape(case.shape, stride, channels=case.channels) for case in cases]

    def load(index: int) -> Tensor:
        volume = np.load(cases[index].image, mmap_mode="r")
        region = model.runner.region(shapes[index])
        return pad_volume(volume, shapes[index], device=world.device, dtype=dtype, region=region)

    def segmented() -> Iterator[Tensor | None]:
        if window is None:
            yield from model.runner.labels(shapes, load=load, logits=lambda output: logits_of(output)[0])
            return
        for index, shape in enumerate(shapes):
            x = load(index) if model.mesh.device == 0 else torch.zeros(shape, dtype=dtype, device=world.device)
            with torch.no_grad():
                labels = sliding_labels(model, x, SlidingWindow(window))
            yield labels

    model.network.eval()
    scores: dict[str, tuple[float | None, ...]] = {}
    for case, found in zip(cases, segmented(), strict=True):
        if found is None:
            continue
        a, b, c = case.shape
        labels = found[:a, :b, :c].cpu()
        assert case.label is not None
        truth = torch.from_numpy(np.load(case.label).astype(np.int64))
        scores[case.id] = dice_per_class(labels, truth, classes=len(classes), annotated=case.annotated)
    model.network.train()
    everywhere: dict[str, tuple[float | None, ...]] = {}
    for part in world.gather(scores):
        assert isinstance(part, dict)
        everywhere |= part
    scored = {name: everywhere[name] for name in order}
    return Evaluation.from_cases(scored, class_names=classes), time.perf_counter() - begun

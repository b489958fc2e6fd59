"""Whole-volume segmentation of cases on the network's grid, and their Dice: how the best model is chosen."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from lampseg.data import PreparedCase
from lampseg.evaluation import Evaluation, dice_per_class
from lampseg.inference.padding import padded_shape
from lampseg.inference.windows import SlidingWindow, sliding_labels
from lampseg.parallel.model import ParallelModel
from lampseg.training.supervision import logits_of


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
        region = model.runner.region(shapes[index])
        x = np.zeros((1, shapes[index][1], *(part.stop - part.start for part in region)), np.float32)
        inside = tuple(slice(part.start, min(part.stop, size)) for part, size in zip(region, cases[index].shape))
        if all(part.stop > part.start for part in inside):  # only these chunks are read
            stored = cases[index].image_part(inside)
            x[0][:, *(slice(0, size) for size in stored.shape[1:])] = stored
        return torch.from_numpy(x).to(world.device, dtype)

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
        truth = torch.from_numpy(case.label_part().astype(np.int64))
        scores[case.id] = dice_per_class(labels, truth, classes=len(classes), annotated=case.annotated)
    model.network.train()
    everywhere: dict[str, tuple[float | None, ...]] = {}
    for part in world.gather(scores):
        assert isinstance(part, dict)
        everywhere |= part
    scored = {name: everywhere[name] for name in order}
    return Evaluation.from_cases(scored, class_names=classes), time.perf_counter() - begun

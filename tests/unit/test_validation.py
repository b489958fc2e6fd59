"""Validation scores whole volumes, cropped from their padding, and says nothing of what was not drawn."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lampseg.data import PreparedCase
from lampseg.data.cache import write_array
from lampseg.parallel.model import ParallelModel
from lampseg.parallel.world import join, leave
from lampseg.partition import make_plan
from lampseg.training.validation import padded_shape, validate


class Thresholds(nn.Module):
    """Class 1 above 0.5, class 2 above 1.5: the right answer for the image below."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.tensor([0.0, 1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return -(x - self.levels.view(1, 3, 1, 1, 1)).abs()


def case_of(folder: Path, name: str, shape: tuple[int, int, int], annotated: tuple[int, ...]) -> PreparedCase:
    rng = np.random.default_rng(len(name))
    label = rng.integers(0, 3, shape).astype(np.uint8)
    write_array(folder / f"{name}.b2nd", label[None].astype(np.float32))
    write_array(folder / f"{name}-label.b2nd", label)
    return PreparedCase(
        id=name,
        image=folder / f"{name}.b2nd",
        label=folder / f"{name}-label.b2nd",
        channels=1,
        shape=shape,
        spacing=(1.0, 1.0, 1.0),
        annotated=annotated,
        voxels=tuple(int((label == c).sum()) for c in range(3)),
        points=None,
    )


def test_perfect_network_scores_one(tmp_path: Path) -> None:
    cases = [case_of(tmp_path, "a", (5, 6, 7), (1, 2)), case_of(tmp_path, "bb", (8, 5, 6), (2,))]
    world = join(device="cpu", timeout=30)
    network = Thresholds()
    plan = make_plan(network, shape=(1, 1, 8, 8, 8))
    model = ParallelModel(network, plan, world=world)
    found, seconds = validate(model, cases, classes=("background", "x", "y"), stride=(4, 4, 4), dtype=torch.float32)
    leave()
    assert found.by_organ() == {"x": 1.0, "y": 1.0}
    assert [organ.count for organ in found.per_organ] == [1, 2]
    assert seconds > 0
    assert network.training


def test_padded_shape() -> None:
    assert padded_shape((5, 8, 9), (4, 4, 2), channels=1) == (1, 1, 8, 8, 10)

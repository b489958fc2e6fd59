"""The loss of what networks return: one tensor, lists of levels (deep supervision), and what is refused."""

from typing import Any

import pytest
import torch
from monai.networks.nets import DynUNet
from torch import Tensor

from lampseg.errors import UserError
from lampseg.training.loss import HybridLoss
from lampseg.training.supervision import logits_of, supervised_loss

LOSS = HybridLoss([1.0, 2.0, 3.0])


def example(size: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits (2, 3, size^3), labels, annotated and valid."""
    generator = torch.Generator().manual_seed(size)
    logits = torch.randn(2, 3, size, size, size, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, (2, size, size, size), generator=generator)
    annotated = torch.tensor([[True, True, True], [True, True, False]])
    valid = torch.ones(2, size, size, size, dtype=torch.bool)
    valid[:, size // 2 :] = False
    return logits, labels, annotated, valid


def test_one_tensor_is_the_plain_loss() -> None:
    logits, labels, annotated, valid = example()
    expected = LOSS(logits, labels, annotated, valid)
    for output in (logits, [logits], (logits,)):
        torch.testing.assert_close(supervised_loss(LOSS, output, labels, annotated, valid), expected)


def test_levels_are_weighted_by_halves() -> None:
    """Coarse labels are those of the nearest voxels; the weights 1, 1/2, 1/4 are normalised to 1."""
    fine, labels, annotated, valid = example(8)
    middle, coarse = example(4)[0], example(2)[0]
    expected = (
        4 * LOSS(fine, labels, annotated, valid)
        + 2 * LOSS(middle, labels[:, ::2, ::2, ::2], annotated, valid[:, ::2, ::2, ::2])
        + LOSS(coarse, labels[:, ::4, ::4, ::4], annotated, valid[:, ::4, ::4, ::4])
    ) / 7
    torch.testing.assert_close(supervised_loss(LOSS, [fine, middle, coarse], labels, annotated, valid), expected)


def test_absent_masks_are_allowed_on_every_level() -> None:
    fine, labels, _, _ = example(8)
    found = supervised_loss(LOSS, [fine, example(4)[0]], labels, None, None)
    assert found.shape == (2,)
    assert bool(found.isfinite().all())


def test_levels_stacked_in_one_tensor() -> None:
    logits, labels, annotated, valid = example()
    other = logits.flip(2)
    stacked = torch.stack([logits, other], dim=1)
    assert [level.shape for level in logits_of(stacked)] == [logits.shape] * 2
    expected = (2 * LOSS(logits, labels, annotated, valid) + LOSS(other, labels, annotated, valid)) / 3
    torch.testing.assert_close(supervised_loss(LOSS, stacked, labels, annotated, valid), expected)


def test_gradients_reach_every_level_of_a_real_network() -> None:
    network = DynUNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=3,
        kernel_size=[3, 3, 3],
        strides=[1, 2, 2],
        upsample_kernel_size=[2, 2],
        filters=[4, 8, 8],
        deep_supervision=True,
        deep_supr_num=1,
    )
    _, labels, annotated, valid = example(16)
    output = network(torch.randn(2, 1, 16, 16, 16))
    assert len(logits_of(output)) == 2
    supervised_loss(LOSS, output, labels, annotated, valid).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


@pytest.mark.parametrize("output", [{"logits": torch.zeros(1)}, [], [torch.zeros(1), None], None, 3.0])
def test_other_outputs_are_refused(output: Any) -> None:
    with pytest.raises(UserError, match=f"the network returns {type(output).__name__}; expected logits"):
        logits_of(output)

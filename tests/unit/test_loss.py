"""The hybrid loss equals a float64 NumPy reference written from its formula; masks, stability, gradients, errors."""

import numpy as np
import pytest
import torch

from lampseg.errors import UserError
from lampseg.training.loss import BYTES_PER_LOGIT, HybridLoss, mini_batch_loss

N, C, SIZE = 3, 4, (3, 4, 5)
WEIGHTS = (0.5, 1.0, 1.5, 3.0)
LOSS = HybridLoss(WEIGHTS)


def make(seed=0, dtype=torch.float64, scale=2.0):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(N, C, *SIZE, generator=generator, dtype=torch.float64) * scale).to(dtype)
    target = torch.randint(0, C, (N, *SIZE), generator=generator)
    valid = torch.rand(N, *SIZE, generator=generator) < 0.7
    return logits, target, valid


ANNOTATED = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)


def reference(logits, target, annotated, valid, weights=WEIGHTS, focal=0.5, gamma=2.0):
    """The docstring's formula, voxel by voxel."""
    logits, target = logits.detach().double().numpy(), target.numpy()
    losses = []
    for n in range(logits.shape[0]):
        x = logits[n].reshape(logits.shape[1], -1)
        e = np.exp(x - x.max(0))
        p, y = e / e.sum(0), target[n].ravel()
        inside = np.ones(y.shape, bool) if valid is None else valid[n].numpy().ravel()
        a = np.ones(len(weights)) if annotated is None else annotated[n].double().numpy().copy()
        a[0] = float(a.all())
        total = 0.0
        for c in range(len(weights)):
            tp = fn = fp = fl = 0.0
            for v in np.flatnonzero(inside):
                if y[v] == c:
                    tp, fn = tp + p[c, v], fn + 1 - p[c, v]
                    fl -= (1 - p[c, v]) ** gamma * np.log(p[c, v])
                else:
                    fp += p[c, v]
            dice = 1 - (tp + 1e-5) / (tp + fn / 2 + fp / 2 + 1e-5)
            total += a[c] * weights[c] * (dice + focal * fl / max(inside.sum(), 1))
        losses.append(total / len(weights))
    return np.array(losses)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(("focal", "gamma"), [(0.5, 2.0), (0.5, 0.0), (2.0, 0.7), (0.0, 2.0)])
def test_equals_the_reference(masked, padded, focal, gamma):
    logits, target, valid = make()
    annotated, valid = ANNOTATED if masked else None, valid if padded else None
    ours = HybridLoss(WEIGHTS, focal, gamma)(logits, target, annotated, valid)
    expected = reference(logits, target, annotated, valid, focal=focal, gamma=gamma)
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-12, atol=0)


def test_equals_the_reference_in_one_and_two_dimensions():
    logits, target, valid = make()
    for axes in (1, 2):
        shape = (12, 5)[:axes] if axes == 2 else (60,)
        x, y, m = logits.reshape(N, C, *shape), target.reshape(N, *shape), valid.reshape(N, *shape)
        expected = reference(x, y, ANNOTATED, m)
        np.testing.assert_allclose(LOSS(x, y, ANNOTATED, m).numpy(), expected, rtol=1e-12)


def test_class_absent_and_not_predicted_costs_nothing_and_present_perfect_is_zero():
    target = torch.zeros(1, 2, 2, 2, dtype=torch.long)
    target[0, 0] = 1
    logits = torch.nn.functional.one_hot(target, C).movedim(-1, 1).double() * 1e3
    assert LOSS(logits, target).abs().max() < 1e-12


@pytest.mark.parametrize("gamma", [2.0, 0.0, 1.5])
def test_gradients(gamma):
    loss = HybridLoss(WEIGHTS, gamma=gamma)
    logits, target, valid = make(1)
    logits = logits[..., :2, :2].clone().requires_grad_()
    target, valid = target[..., :2, :2].contiguous(), valid[..., :2, :2].contiguous()
    assert torch.autograd.gradcheck(lambda x: loss(x, target, ANNOTATED, valid), logits)


def test_bfloat16_logits_are_computed_in_float32():
    logits, target, valid = make(dtype=torch.bfloat16)
    ours = LOSS(logits, target, ANNOTATED, valid)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), reference(logits, target, ANNOTATED, valid), rtol=2e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = LOSS(logits, target, ANNOTATED, valid)
    assert torch.equal(inside, ours)


@pytest.mark.parametrize("gamma", [0.0, 0.01, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 30.0, 1e4, 1e30])
def test_loss_and_gradient_stay_finite(gamma, scale):
    loss = HybridLoss(WEIGHTS, gamma=gamma)
    _, target, _ = make()
    right = torch.nn.functional.one_hot(target, C).movedim(-1, 1).float()
    for sign in (1.0, -1.0):  # every voxel right with p = 1, then every voxel wrong
        x = (sign * scale * right).requires_grad_()
        value = loss(x, target)
        value.sum().backward()
        assert value.isfinite().all()
        assert x.grad.isfinite().all()


def test_what_is_not_annotated_contributes_nothing():
    """In sample 1 class 1 is not annotated: terms of classes 1 and 0 are gone, those of 2 and 3 unchanged."""
    logits, target, valid = make()
    only = [HybridLoss([float(c == k) for k in range(C)])(logits, target, ANNOTATED, valid)[1] for c in range(C)]
    assert only[0] == only[1] == 0
    full = [HybridLoss([float(c == k) for k in range(C)])(logits, target, None, valid)[1] for c in range(C)]
    assert only[2] == full[2] != 0
    assert only[3] == full[3] != 0


def test_a_voxel_of_the_missing_organ_may_be_called_background_or_that_organ_alike():
    """Its truth is unknown: moving probability between the background and the missing class costs nothing."""
    logits, target, _ = make()
    target = torch.where(target == 1, 0, target)
    p = logits.softmax(1)
    moved = p.clone()
    moved[:, 1] += 0.9 * p[:, 0]
    moved[:, 0] *= 0.1
    annotated = torch.tensor([[True, False, True, True]] * N)
    # Classes 2 and 3 keep their probabilities, and they alone have terms.
    torch.testing.assert_close(LOSS(moved.log(), target, annotated), LOSS(p.log(), target, annotated))
    # Whereas a false positive of an annotated class still costs.
    raised = p.clone()
    raised[:, 2] += 0.9 * p[:, 0] * (target == 0)
    raised[:, 0] -= 0.9 * p[:, 0] * (target == 0)
    assert (LOSS(raised.log(), target, annotated) > LOSS(p.log(), target, annotated)).all()


def test_nothing_annotated_gives_zero_loss_and_zero_gradient():
    logits, target, _ = make()
    logits.requires_grad_()
    value = LOSS(logits, target, torch.zeros(N, C, dtype=torch.bool))
    value.sum().backward()
    assert (value == 0).all()
    assert (logits.grad == 0).all()


def test_padding_takes_no_part_whatever_it_holds():
    logits, target, valid = make()
    expected = LOSS(logits, target, ANNOTATED, valid)
    logits = torch.where(valid[:, None], logits, torch.nan).requires_grad_()
    value = LOSS(logits, torch.where(valid, target, 255), ANNOTATED, valid)
    assert torch.equal(value, expected)
    value.sum().backward()
    assert (logits.grad[~valid[:, None].expand_as(logits)] == 0).all()
    assert logits.grad.isfinite().all()
    # And a volume padded to a larger one has the loss of the volume.
    logits, target, _ = make()
    pad = (0, 3, 0, 0, 2, 1)
    inside = torch.nn.functional.pad(torch.ones_like(target, dtype=torch.bool), pad)
    padded = LOSS(torch.nn.functional.pad(logits, pad), torch.nn.functional.pad(target, pad), ANNOTATED, inside)
    torch.testing.assert_close(padded, LOSS(logits, target, ANNOTATED), rtol=1e-12, atol=0)


def test_only_padding_gives_zero():
    logits, target, _ = make()
    assert (LOSS(logits, target, None, torch.zeros_like(target, dtype=torch.bool)) == 0).all()


def test_samples_do_not_depend_on_each_other_and_micro_batches_add_up():
    logits, target, valid = make()
    logits.requires_grad_()
    together = mini_batch_loss(LOSS(logits, target, ANNOTATED, valid))
    (whole,) = torch.autograd.grad(together, logits)
    parts = []
    for part in (slice(0, 1), slice(1, 3)):
        parts.append(mini_batch_loss(LOSS(logits[part], target[part], ANNOTATED[part], valid[part]), batch=N))
    torch.testing.assert_close(sum(parts), together, rtol=1e-14, atol=0)
    (summed,) = torch.autograd.grad(sum(parts), logits)
    torch.testing.assert_close(summed, whole, rtol=1e-12, atol=1e-16)


def test_integer_targets_of_any_width():
    logits, target, _ = make()
    assert torch.equal(LOSS(logits, target.to(torch.uint8)), LOSS(logits, target))


def test_weights_are_not_part_of_a_checkpoint():
    assert not HybridLoss(WEIGHTS).state_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": torch.zeros(N, C + 1, *SIZE)}, r"logits of shape \(3, 5, 3, 4, 5\), but there are 4 class weights"),
        ({"logits": torch.zeros(N, C)}, r"expected \(batch, 4, size"),
        ({"target": torch.zeros(N, 1, *SIZE, dtype=torch.long)}, r"target has shape \(3, 1, 3, 4, 5\).*need \(3, 3, 4"),
        ({"target": torch.zeros(N, *SIZE)}, "target holds torch.float32"),
        ({"annotated": torch.ones(N, C - 1, dtype=torch.bool)}, r"annotated has shape \(3, 3\).*need \(3, 4\)"),
        ({"valid": torch.ones(N, 3, 4, 4, dtype=torch.bool)}, "valid has shape"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    logits, target, valid = make()
    with pytest.raises(UserError, match=message):
        LOSS(**({"logits": logits, "target": target, "annotated": ANNOTATED, "valid": valid} | change))


@pytest.mark.parametrize("weights", [[], [1.0, -1.0], [1.0, float("nan")], [[1.0, 2.0]]])
def test_bad_weights_are_refused(weights):
    with pytest.raises(UserError, match=r"loss\.class_weights"):
        HybridLoss(weights)


@pytest.mark.parametrize("field", ["focal", "gamma"])
def test_bad_factors_are_refused(field):
    with pytest.raises(UserError, match=rf"loss\.{field}: -1"):
        HybridLoss(WEIGHTS, **{field: -1.0})


@pytest.mark.parametrize("classes", [4, 10])
def test_it_saves_what_the_planner_counts(classes: int) -> None:
    logits = torch.randn(1, classes, 24, 24, 24, requires_grad=True)
    target = torch.randint(0, classes, (1, 24, 24, 24))
    saved: dict[int, torch.Tensor] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = HybridLoss([1.0] * classes)(logits, target).sum()
    loss.backward()
    own = logits.untyped_storage().data_ptr()
    nbytes = sum(tensor.untyped_storage().nbytes() for pointer, tensor in saved.items() if pointer != own)
    assert 0.6 * BYTES_PER_LOGIT <= nbytes / logits.numel() <= 1.4 * BYTES_PER_LOGIT

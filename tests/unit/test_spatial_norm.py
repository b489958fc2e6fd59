"""Norms on slabs by both ways: CUDA's operators, played by plain arithmetic that is as strict, and the others."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from lampseg.parallel.spatial import norm_kernels
from lampseg.parallel.spatial.norm import BATCH, INSTANCE, Cut, Sets, normalise
from lampseg.recording.fake_mode import DryMode
from lampseg.recording.fused_norms import FAKES
from tests.norm_ranks import Case, Shared, ThreadAxis

PLANES = [(7, 5), (5, 3, 4)]
CASES = [
    Case(kind, planes, affine) for kind in ("instance", "batch", "group") for planes in PLANES for affine in (1, 0)
]


def table_type(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def over_space(t: Tensor, x: Tensor) -> Tensor:
    return t.double().view(-1, *[1] * (x.dim() - 2))


def is_table(x: Tensor, *tables: Tensor | None) -> bool:
    return all(t is None or (t.dtype, tuple(t.shape)) == (table_type(x), (x.shape[1],)) for t in tables)


def stats(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x.double(), [0, *range(2, x.dim())], correction=0)
    return mean.to(table_type(x)), (variance + eps).rsqrt().to(table_type(x))


def gathered(
    like: Tensor, mean: Tensor, invstd: Tensor, running: None, variance: None, momentum: float, eps: float, n: Tensor
) -> tuple[Tensor, Tensor]:
    assert n.dtype == like.dtype, "the kernel reads counts as numbers of the first argument's type"
    assert mean.shape == invstd.shape == (len(n), mean.shape[1])
    share = (n.double() / n.double().sum())[:, None]
    total = (share * mean.double()).sum(0)
    found = (share * (invstd.double().pow(-2) - eps + (mean.double() - total).square())).sum(0)
    return total.to(mean.dtype), (found + eps).rsqrt().to(mean.dtype)


def applied(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, invstd: Tensor, eps: float) -> Tensor:
    assert is_table(x, mean, invstd, weight, bias)
    out = (x - over_space(mean, x)) * over_space(invstd, x)
    out = out if weight is None else out * over_space(weight, x)
    return (out if bias is None else out + over_space(bias, x)).to(x.dtype)


def sums(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    input_g: bool,
    weight_g: bool,
    bias_g: bool,
) -> tuple[Tensor | None, ...]:
    assert is_table(x, mean, invstd, weight)
    assert weight is not None or not (weight_g or bias_g), "the kernel takes their type from it"
    space = [0, *range(2, x.dim())]
    total = grad.double().sum(space)
    product = (grad.double() * (x.double() - over_space(mean, x))).sum(space)
    return (
        total.to(mean.dtype) if input_g else None,
        product.to(mean.dtype) if input_g else None,
        (product * invstd).to(mean.dtype) if weight_g else None,
        total.to(mean.dtype) if bias_g else None,
    )


def gradient(
    grad: Tensor,
    x: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor | None,
    total: Tensor,
    product: Tensor,
    n: Tensor,
) -> Tensor:
    assert is_table(x, mean, invstd, weight, total, product)
    assert n.dtype == torch.int32
    of_grad, of_product = (over_space(t / n.sum(), x) for t in (total, product))
    out = grad - of_grad - (x - over_space(mean, x)) * over_space(invstd, x).square() * of_product
    out = out * over_space(invstd, x)
    return (out if weight is None else out * over_space(weight, x)).to(x.dtype)


PLAYED = {
    "batch_norm_stats": stats,
    "batch_norm_gather_stats_with_counts": gathered,
    "batch_norm_elemt": applied,
    "batch_norm_backward_reduce": sums,
    "batch_norm_backward_elemt": gradient,
}


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of CUDA's operators, which no CPU has."""
    monkeypatch.setattr(norm_kernels, "_aten", SimpleNamespace(**PLAYED))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_on_cuda(case: Case, played: None) -> None:
    torch.testing.assert_close(case.slabs(fused=True), case.whole(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_on_a_cpu(case: Case) -> None:
    torch.testing.assert_close(case.slabs(fused=False), case.whole(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", ["instance", "batch", "group"])
def test_in_mixed_precision(kind: str, fused: bool, request: pytest.FixtureRequest) -> None:
    """Results are rounded to bfloat16, once; statistics and the parameters' gradients are not."""
    if fused:
        request.getfixturevalue("played")
    case = Case(kind, (5, 3, 4), dtype=torch.bfloat16)
    found, expected = case.slabs(fused=fused), case.whole()
    for name, tolerance in (("out", 2**-8), ("input", 2**-6), ("weight", 1e-4), ("bias", 1e-4)):
        largest = float(expected[name].abs().max())
        torch.testing.assert_close(found[name].double(), expected[name], rtol=0, atol=tolerance * largest)


def test_more_voxels_than_the_kernel_counts(played: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norm_kernels, "_LARGEST", 10)
    case = Case("batch", (7, 5))
    torch.testing.assert_close(case.slabs(fused=True), case.whole(), rtol=1e-11, atol=1e-11)


def test_a_channel_without_variance(played: None) -> None:
    """1 / 0 squared would be its variance, if eps were not within the root."""
    x = torch.full((1, 2, 3, 4, 5), 7.0)
    out, found = normalise(x, None, None, eps=1e-5, sets=INSTANCE, cuts=[], fused=True)
    assert torch.equal(out, torch.zeros_like(x))
    torch.testing.assert_close(found.variance(), torch.zeros(2), rtol=0, atol=1e-11)


@pytest.mark.parametrize("sets", [INSTANCE, BATCH, Sets(groups=3)], ids=["instance", "batch", "group"])
@pytest.mark.parametrize("affine", [True, False])
def test_fake_results_are_as_the_real_ones(sets: Sets, affine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a plan for CUDA counts other bytes than a GPU has: every operator's results, from equal arguments."""
    seen: list[str] = []

    def both(name: str):
        overload = getattr(torch.ops.aten, name).default

        def call(*args):
            real = PLAYED[name](*args)
            with DryMode() as mode:
                faked = overload(*(mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args))
            for one, other in zip(*((t,) if isinstance(t, Tensor) else t for t in (real, faked)), strict=True):
                assert (one is None) == (other is None)
                if one is not None:
                    assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
            seen.append(name)
            return real

        return call

    monkeypatch.setattr(norm_kernels, "_aten", SimpleNamespace(**{name: both(name) for name in PLAYED}))
    x = torch.randn(2, 6, 3, 4, 5).bfloat16().requires_grad_()
    weight = torch.ones(6, requires_grad=True) if affine else None
    cut = Cut(ThreadAxis(0, 2, 1, 0, None, shared=Shared(1)), (3,))
    out, _ = normalise(x, weight, weight, eps=1e-5, sets=sets, cuts=[cut], fused=True)
    out.sum().backward()
    assert set(seen) == set(PLAYED) - ({"batch_norm_backward_elemt"} if sets.groups else set())
    assert {f"aten::{name}" for name in PLAYED} == {func.name() for func in FAKES} - {"aten::batch_norm_update_stats"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_fake_statistics_are_as_the_real_ones_and_take_no_memory(dtype: torch.dtype) -> None:
    """PyTorch has no fake kernel of the CPU's: it would run the real one, on zeros of the volume's size."""
    operator = torch.ops.aten.batch_norm_update_stats.default
    for tables in (None, torch.promote_types(dtype, torch.float32)):
        found = []
        for size in (4, 2**14):  # the larger one has 12 TiB and more
            with DryMode() if size > 4 else contextlib.nullcontext():
                x = torch.empty(1, 3, size, size, size // 2, dtype=dtype)
                running = None if tables is None else torch.zeros(3, dtype=tables)
                found.append([(t.shape, t.dtype) for t in operator(x, running, running, 0.0)])
        assert found[0] == found[1]

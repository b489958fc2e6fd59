"""Norms on slabs on a GPU: CUDA's own kernels against operators that every device has. Skipped without CUDA."""

import pytest
import torch

from tests.norm_ranks import Case

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.mark.parametrize("planes", [(12,), (7, 5), (5, 3, 4)], ids=str)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", ["instance", "batch", "group"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5), (torch.bfloat16, 2**-6)], ids=str
)
def test_both_ways_equal_the_whole(
    kind: str, affine: bool, planes: tuple[int, ...], dtype: torch.dtype, tolerance: float
) -> None:
    case = Case(kind, planes, affine, dtype, "cuda")
    expected = case.whole()
    for fused in (True, False):
        for name, found in case.slabs(fused=fused).items():
            atol = tolerance * max(1.0, float(expected[name].abs().max()))
            torch.testing.assert_close(found.double(), expected[name], rtol=0, atol=atol)

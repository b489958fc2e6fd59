"""The pipeline equals one device: outputs, loss, every gradient and buffer, by every schedule, on any mesh."""

import functools
import itertools
from typing import Any

import pytest
import torch

from tests.equivalence.case_lists import (
    BRIEF,
    EXACT,
    FULL,
    RECOMPUTE,
    SCHEDULES,
    bfloat16_cases,
    dropout_cases,
    full_cases,
)
from tests.equivalence.cases import Case, one_device

pytestmark = pytest.mark.timeout(420)  # the first test waits for all cases
Results = dict[Case, dict[str, Any]]
# float32: the split adds the same numbers, but a value's gradients from two stages in another order.
TOLERANCES = {"float64": 1e-9, "float32": 1e-5}


@functools.cache
def reference(network: str, shapes: Any, precision: str, frozen: str, rounds: int) -> dict[str, Any]:
    return one_device(Case(network, 1, shapes, precision=precision, frozen=frozen, rounds=rounds))


def assert_equal(actual: dict[str, Any], expected: dict[str, Any], *, tolerance: float) -> None:
    torch.testing.assert_close(actual["losses"], expected["losses"], rtol=tolerance, atol=tolerance)
    assert actual["gradients"].keys() == expected["gradients"].keys()
    scale = max(float(g.abs().max()) for g in expected["gradients"].values() if g is not None)
    for key, gradient in expected["gradients"].items():
        found = actual["gradients"][key]
        assert (found is None) == (gradient is None), key
        if gradient is not None:
            assert float((found - gradient).abs().max()) <= tolerance * scale, f"gradient of {key}"
    assert actual["buffers"].keys() == expected["buffers"].keys()
    for key, buffer in expected["buffers"].items():
        torch.testing.assert_close(actual["buffers"][key], buffer, rtol=tolerance, atol=tolerance, msg=key)
    for found, wanted in zip(actual["outputs"], expected["outputs"], strict=True):
        torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case.id)
def test_equals_one_device(case: Case, split_results: Results) -> None:
    expected = reference(case.network, case.shapes, case.precision, case.frozen, case.rounds)
    assert_equal(split_results[case], expected, tolerance=TOLERANCES[case.precision])


@pytest.mark.parametrize("case", dropout_cases()[1:], ids=lambda case: case.id)
def test_dropout_does_not_depend_on_the_split(case: Case, split_results: Results) -> None:
    assert_equal(split_results[case], split_results[dropout_cases()[0]], tolerance=1e-9)


def test_dropout_drops(split_results: Results) -> None:
    case = dropout_cases()[0]
    without = one_device(Case("basicunet", 1, case.shapes))
    assert abs(split_results[case]["losses"][0] - without["losses"][0]) > 1e-4


def test_mixed_precision_does_not_depend_on_the_split(split_results: Results) -> None:
    one, two = bfloat16_cases()
    # bfloat16 has 8 bits: a sum in another order differs by 2^-8 of its largest term.
    assert_equal(split_results[two], split_results[one], tolerance=2**-8)
    full = reference(one.network, one.shapes, "float32", "", 1)
    assert not torch.equal(split_results[two]["outputs"][0].float(), full["outputs"][0]), "nothing was rounded"


def test_cases_cover_what_they_should() -> None:
    every: set[tuple[str, int, int]] = set()
    for name in FULL:
        cases = full_cases(name)
        assert {(case.schedule, case.recompute) for case in cases} >= set(itertools.product(SCHEDULES, RECOMPUTE))
        assert {case.mesh for case in cases} >= {(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (2, 2)}
        assert {len(case.shapes) for case in cases} == {1, 2, 3, 4, 5}
        every |= {(case.schedule, *case.mesh) for case in cases}
    several = {(schedule, *mesh) for schedule in SCHEDULES for mesh in ((1, 2), (1, 3), (1, 4), (2, 2))}
    assert every >= several
    assert {case.network for case in EXACT} >= {*FULL, *BRIEF, "monai-unet", "segresnet", "attention-unet"}

"""Randomness: seeds of operations, not of devices; the generators outside are left alone."""

import pytest
import torch

from lampseg.parallel.randomness import is_random, mix, seeded

CPU = torch.device("cpu")


def test_the_same_seed_draws_the_same() -> None:
    with seeded(5, CPU):
        first = torch.rand(3)
    torch.rand(7)
    with seeded(5, CPU):
        assert torch.equal(torch.rand(3), first)
    with seeded(6, CPU):
        assert not torch.equal(torch.rand(3), first)


def test_generators_outside_go_on_as_if_nothing_was() -> None:
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    head = torch.rand(2)
    with seeded(9, CPU):
        torch.rand(100)
    assert torch.equal(torch.cat([head, torch.rand(2)]), expected)


def test_generators_are_restored_after_an_error() -> None:
    state = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), seeded(9, CPU):
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_of_numbers() -> None:
    assert mix(1, 2) == mix(1, 2) == 6747357512026751
    assert len({mix(a, b) for a in range(30) for b in range(30)}) == 900
    assert mix(1, 12) != mix(11, 2)
    assert 0 <= mix(7) < 2**56


def _changes_the_generator(call: object) -> bool:
    before = torch.get_rng_state()
    call()  # type: ignore[operator]
    return not torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("dropout", lambda: torch.nn.functional.dropout(torch.ones(9))),
        ("dropout3d", lambda: torch.nn.functional.dropout3d(torch.ones(1, 2, 3, 3, 3))),
        ("alpha_dropout", lambda: torch.nn.functional.alpha_dropout(torch.ones(9), training=True)),
        ("feature_alpha_dropout", lambda: torch.nn.functional.feature_alpha_dropout(torch.ones(2, 9), training=True)),
        ("rrelu", lambda: torch.nn.functional.rrelu(-torch.ones(9), training=True)),
        ("bernoulli_", lambda: torch.empty(9).bernoulli_()),
        ("randn_like", lambda: torch.randn_like(torch.ones(9))),
        ("uniform_", lambda: torch.empty(9).uniform_()),
        ("randint", lambda: torch.randint(3, (9,))),
        ("multinomial", lambda: torch.multinomial(torch.ones(9), 3)),
        ("gumbel_softmax", lambda: torch.nn.functional.gumbel_softmax(torch.ones(9))),
        ("poisson", lambda: torch.poisson(torch.ones(9))),
        ("binomial", lambda: torch.binomial(torch.full((9,), 9.0), torch.full((9,), 0.5))),
        ("normal_", lambda: torch.empty(9).normal_()),
    ],
)
def test_what_draws_is_known(name: str, call: object) -> None:
    assert _changes_the_generator(call)
    assert is_random(name)


def test_what_does_not_draw_is_not_seeded() -> None:
    assert not any(is_random(name) for name in ("conv3d", "batch_norm", "relu", "shape", "add"))

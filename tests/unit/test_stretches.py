"""Which parts of a chain run again: against all choices, of random chains with modules inside modules."""

import itertools
import random
from collections.abc import Iterator

import pytest

from lampseg.partition.stretches import Stretch, leanest, least_peak, of_use, quickest

Choice = tuple[float, int, tuple[str, ...]]


def chain(seed: int) -> tuple[list[Stretch], int]:
    """Segments that keep something (or let go of it), and modules over one to three of them."""
    draw = random.Random(seed)
    positions = draw.randrange(3, 9)
    stretches = [
        Stretch(n, n + 1, draw.choice([draw.randrange(50), -5]), draw.randrange(60, 120), 0.0) for n in range(positions)
    ]
    for n in range(positions):
        for length in range(1, draw.randrange(1, 5)):
            if n + length <= positions:
                kept, peak = draw.randrange(10), draw.randrange(60, 150)
                name = f"from {n} to {n + length}"
                stretches.append(Stretch(n, n + length, kept, peak, draw.random(), name))
    return stretches, positions


def every_way(stretches: list[Stretch], positions: int, at: int = 0) -> Iterator[list[Stretch]]:
    if at == positions:
        yield []
    for stretch in stretches:
        if stretch.first == at:
            yield from ([stretch, *rest] for rest in every_way(stretches, positions, stretch.last))


def figures(way: list[Stretch]) -> Choice:
    alive = peak = 0
    for stretch in way:
        peak = max(peak, alive + stretch.peak, alive + stretch.kept)
        alive += stretch.kept
    return sum(s.seconds for s in way), peak, tuple(s.module for s in way if s.module)


@pytest.mark.parametrize("seed", range(12))
def test_equals_all_choices(seed: int) -> None:
    stretches, positions = chain(seed)
    every = [figures(way) for way in every_way(stretches, positions)]
    peaks = sorted({peak for _, peak, _ in every})
    least = leanest(stretches, positions=positions)
    assert least.peak == peaks[0]
    assert least.seconds == pytest.approx(min(seconds for seconds, peak, _ in every if peak == peaks[0]))
    for limit in itertools.chain(peaks[:: max(1, len(peaks) // 8)], [peaks[0] - 1, 1e9]):
        fitting = [choice for choice in every if choice[1] <= limit]
        found = quickest(stretches, positions=positions, limit=limit)
        if not fitting:
            assert found is None
            continue
        assert found is not None
        assert found.peak <= limit
        assert found.seconds == pytest.approx(min(fitting)[0])
        assert (pytest.approx(found.seconds), found.peak, found.modules) in fitting


@pytest.mark.parametrize("seed", range(12))
def test_what_is_of_use_against_all_choices(seed: int) -> None:
    stretches, positions = chain(seed)
    every = [(figures(way)[1], way) for way in every_way(stretches, positions)]
    peaks = sorted({peak for peak, _ in every})
    least = least_peak(stretches, positions=positions)
    assert peaks[0] * (1 - 1e-6) <= least < peaks[0]
    for limit in (*peaks[:: max(1, len(peaks) // 8)], peaks[0] - 1):
        used = [stretch for peak, way in every if peak <= limit for stretch in way]
        found = of_use(stretches, positions=positions, limit=limit)
        assert found == [stretch for stretch in stretches if stretch in used], limit


def test_nothing_runs_again_without_need() -> None:
    stretches, positions = chain(3)
    found = quickest(stretches, positions=positions, limit=float("inf"))
    assert found is not None
    assert found.modules == ()

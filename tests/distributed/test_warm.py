"""Ranks begin with everything imported; if the server can't load it, multiprocessing says nothing and all is slow."""

import sys
from pathlib import Path

from tests.once import once
from tests.ranks import run_ranks


def begun(rank: int) -> bool:
    return "tests.warmed" in sys.modules


def test_ranks_are_warm() -> None:
    assert run_ranks(begun, 2) == [True, True]
    assert "tests.warmed" not in sys.modules, "it is the server that loads it"


def test_what_is_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def fails() -> int:
        raise ZeroDivisionError

    def makes() -> int:
        made.append(1)
        return len(made)

    for make in (fails, makes, makes):
        try:
            assert once(tmp_path, "thing", make) == 1
        except ZeroDivisionError:
            assert make is fails
    assert made == [1]

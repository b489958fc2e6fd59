"""The cache: boxes are read without the rest, and entries are there whole or not at all."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lampseg.data.cache import read_array, read_entry, remove_remains, write_array, write_entry
from lampseg.errors import UserError


@pytest.mark.parametrize("shape", [(70, 65, 130), (2, 20, 100, 33), (1, 1, 1), (3, 5, 64, 64)])
@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_any_box_is_what_was_written(shape: tuple[int, ...], kind: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    array = (rng.random(shape) * 255).astype(kind)
    write_array(tmp_path / "a.b2nd", array)
    whole = read_array(tmp_path / "a.b2nd")
    assert whole.dtype == kind
    np.testing.assert_array_equal(whole, array)
    for _ in range(20):
        ends = [np.sort(rng.choice(size + 1, 2, replace=False)) for size in shape[-3:]]
        box = tuple(slice(int(a), int(b)) for a, b in ends)
        found = read_array(tmp_path / "a.b2nd", box)
        np.testing.assert_array_equal(found, array[(..., *box)])
        found[...] = 0  # it may be written to


def test_a_box_is_read_without_the_rest(tmp_path: Path) -> None:
    """What lies outside its chunks is overwritten, and nobody notices."""
    array = np.random.default_rng(0).random((1, 192, 192, 192), np.float32)
    path = tmp_path / "a.b2nd"
    write_array(path, array)
    chunks = 4 * 64**3
    assert path.stat().st_size > 0.8 * 27 * chunks  # random numbers hardly shrink: chunk after chunk, in order
    with open(path, "r+b") as file:
        file.seek(2 * chunks)
        file.write(bytes(20 * chunks))
    region = (slice(0, 64), slice(0, 64), slice(3, 64))
    np.testing.assert_array_equal(read_array(path, region), array[(..., *region)])
    with pytest.raises(UserError, match="cannot be read"):
        read_array(path, (slice(64, 128),) * 3)


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    key = {"version": 1}

    def fill(entry: Path) -> dict[str, Any]:
        (entry / "file").write_text("slow")
        write_entry(tmp_path, "a", key, lambda inner: {"size": (inner / "file").write_text("fast!")})
        return {"size": 4}

    write_entry(tmp_path, "a", key, fill)
    found = read_entry(tmp_path, "a", key)
    assert found is not None
    assert found[1] == {"size": 5}
    assert [path.name for path in tmp_path.iterdir()] == [found[0].name]


def test_what_living_processes_and_other_machines_work_on_is_left_alone(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()

    def fill(entry: Path) -> dict[str, Any]:
        _, host, pid, _, _ = entry.name.rsplit(".", 4)
        (left := tmp_path / entry.name.replace(f".{pid}.", f".{dead.pid}.")).mkdir()
        (elsewhere := tmp_path / left.name.replace(f".{host}.", ".elsewhere.")).mkdir()
        remove_remains(tmp_path)
        assert [entry.is_dir(), left.is_dir(), elsewhere.is_dir()] == [True, False, True]
        elsewhere.rmdir()
        return {}

    write_entry(tmp_path, "a.b", {}, fill)
    assert len(list(tmp_path.iterdir())) == 1

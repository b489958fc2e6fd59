"""Freed host memory stays with the process, within, and goes back at the end."""

import subprocess
import sys

MEASURE = """
import resource
from pathlib import Path
from lampseg.host_allocator import freed_memory_kept

SIZE = 2**26
PAGES = SIZE // resource.getpagesize()

def faults():  # for four blocks, one after the other; in pages of one block
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        b"x" * SIZE
    return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / PAGES

def resident():  # in blocks
    return int(Path("/proc/self/statm").read_text().split()[1]) / PAGES

print(faults())
begun = resident()
with freed_memory_kept(wanted=WANTED):
    faults()
    print(faults(), resident() - begun)
print(resident() - begun)
"""


def measured(*, wanted: bool) -> list[float]:
    """Pages for four blocks before and within, blocks held after these, and at the end; in a process of its own."""
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE.replace("WANTED", str(wanted))],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return [float(word) for word in ran.stdout.split()]


def test_a_block_takes_the_memory_of_the_one_before_and_at_the_end_it_goes_back() -> None:
    before, within, kept, left = measured(wanted=True)
    assert before > 3.9, "glibc gives each block back, and asks for the next"
    assert within < 0.1
    assert kept > 0.9
    assert left < 0.1


def test_unless_it_is_wanted_nothing_changes() -> None:
    before, within, kept, left = measured(wanted=False)
    assert min(before, within) > 3.9
    assert max(kept, left) < 0.1

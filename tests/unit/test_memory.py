"""The measured peak follows what a step allocates and is forgotten at the next."""

import subprocess
import sys

import torch
from torch import nn

from lampseg.partition import record_for
from lampseg.training.memory import TensorPeak

BEGIN = """
import torch
from lampseg.host_allocator import freed_memory_kept
from lampseg.training.memory import PeakMemory

SIZE = 64 * 2**20
SLACK = 4 * 2**20  # the system counts pages in batches

def made():
    return torch.ones(SIZE, dtype=torch.uint8)

memory = PeakMemory(torch.device("cpu"), held=1000)
made()  # threads and libraries are there afterwards
"""


def in_a_new_process(steps: str) -> None:
    """What other tests have freed is no part of what is seen."""
    subprocess.run([sys.executable, "-c", BEGIN + steps], check=True, timeout=120)


def test_peak_of_a_step() -> None:
    in_a_new_process("""
memory.reset()
block = made()
assert abs(memory.read() - SIZE) < SLACK, "what is there counts"
del block
assert abs(memory.read() - SIZE) < SLACK, "what was there counts until the step ends"
memory.reset()
assert memory.read() < SLACK, "but not in the next step"
assert memory.read() >= 1000
""")


def test_a_step_that_takes_memory_kept_from_before_it() -> None:
    """Where freed memory is kept, the first step took what planning had left, and seemed to need nothing."""
    in_a_new_process("""
with freed_memory_kept():
    made()
    memory.reset()
    block = made()
    assert abs(memory.read() - SIZE) < SLACK
    del block
    memory.reset()
    assert abs(memory.read() - SIZE) < SLACK, "what is kept for the next step counts"
""")


def test_tensors_of_the_first_steps_alone() -> None:
    held, array = torch.zeros(100), torch.zeros(7)
    tensors = TensorPeak(torch.device("cpu"), steps=2)
    peaks = []
    for size in (1000, 500, 2000):
        with tensors.measure(iter([held])):
            tensors.noted(array)
            made = torch.zeros(size) + 1
            del made
        peaks.append(tensors.nbytes)
    assert peaks == [4 * (100 + 7 + 2 * 1000), 4 * (100 + 7 + 2 * 500), None]
    assert tensors.noted(array) is array


def test_a_dry_run_within_a_step_takes_no_memory() -> None:
    """The first step of a new shape records the network: its fake tensors were once counted, and doubled the peak."""
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv3d(4, 1, 3, padding=1))
    tensors = TensorPeak(torch.device("cpu"))
    with tensors.measure(iter(network.parameters())):
        record_for(network, shape=(1, 1, 16, 16, 16), precision="float32", device="cpu")
    assert tensors.nbytes == sum(parameter.nbytes for parameter in network.parameters())

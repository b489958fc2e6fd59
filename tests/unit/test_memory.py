"""The measured peak follows what a step allocates and is forgotten at the next."""

import gc

import torch
from torch import nn

from lampseg.partition import record_for
from lampseg.training.memory import PeakMemory, TensorPeak

SIZE = 64 * 2**20
SLACK = 4 * 2**20
"""The system counts pages in batches, and other things come and go."""


def test_peak_of_a_step() -> None:
    memory = PeakMemory(torch.device("cpu"), held=1000)
    gc.collect()  # what other tests left would go during this one
    memory.reset()
    block = torch.ones(SIZE, dtype=torch.uint8)
    assert abs(memory.read() - SIZE) < SLACK, "what is there counts"
    del block
    assert abs(memory.read() - SIZE) < SLACK, "what was there counts until the step ends"
    memory.reset()
    assert memory.read() < SLACK, "but not in the next step"
    assert memory.read() >= 1000


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

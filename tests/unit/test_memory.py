"""The measured peak follows what a step allocates and is forgotten at the next."""

import torch

from lampseg.training.memory import PeakMemory

SIZE = 64 * 2**20
SLACK = 4 * 2**20
"""The system counts pages in batches, and other things come and go."""


def test_peak_of_a_step() -> None:
    memory = PeakMemory(torch.device("cpu"), held=1000)
    memory.reset()
    block = torch.ones(SIZE, dtype=torch.uint8)
    assert abs(memory.read() - SIZE) < SLACK, "what is there counts"
    del block
    assert abs(memory.read() - SIZE) < SLACK, "what was there counts until the step ends"
    memory.reset()
    assert memory.read() < SLACK, "but not in the next step"
    assert memory.read() >= 1000

"""The measured peak follows what a step allocates and is forgotten at the next."""

import torch

from lampseg.training.memory import PeakMemory

SIZE = 64 * 2**20


def test_peak_of_a_step() -> None:
    memory = PeakMemory(torch.device("cpu"), held=1000)
    memory.reset()
    block = torch.ones(SIZE, dtype=torch.uint8)
    assert SIZE <= memory.read() < 1.5 * SIZE, "what is there counts"
    del block
    assert memory.read() >= SIZE, "what was there counts until the step ends"
    memory.reset()
    assert memory.read() < SIZE / 2, "but not in the next step"
    assert memory.read() >= 1000

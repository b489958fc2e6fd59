"""A network that breaks on purpose in one process, to see how a run ends then."""

import os

import torch
from torch import Tensor, nn


class BreaksOnRankOne(nn.Module):
    """Convolutions; the process of rank 1 raises in one of the forward passes of the third stage or so of a run."""

    def __init__(self, in_channels: int, out_channels: int, calls: int = 40) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv3d(in_channels, 8, 3, padding=1), nn.LeakyReLU(), nn.Conv3d(8, 8, 3, padding=1)
        )
        self.head = nn.Conv3d(8, out_channels, 1)
        self.left = calls

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left < 0 and os.environ.get("RANK") == "1":
            raise ArithmeticError("broken on purpose")
        out: Tensor = self.head(torch.relu(self.body(x)))
        return out

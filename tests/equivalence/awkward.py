"""Small networks that do what makes a split hard: views, in-place writes, new tensors, gradients switched off."""

import torch
from torch import Tensor, nn


def conv(inputs: int = 4, outputs: int = 4) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, 3, padding=1)


class ThreeConvolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(1, 4), conv(), conv()


class ReturnTypes(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        values, _ = torch.max(x, dim=1, keepdim=True)
        top = torch.topk(self.b(x), 2, dim=1)
        return self.c(x * values) + top.values[:, :1] + top.indices.double().sum()


class ChunksAndSplits(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        p, q = x.chunk(2, 1)
        r = torch.split(self.b(x), [1, 3], 1)
        return self.c(torch.cat([q, p], 1)) * r[0] + r[1].sum(1, keepdim=True)


class WritesThroughViews(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) * 1
        x[:, :2].mul_(2)
        y = self.b(x)
        view = y[:, 1:]
        y.add_(1)
        return self.c(y) * view.mean()


class SetsItems(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x) + 0
        x[:, 0] = 0
        return self.c(self.b(x)) + x


class FillsZeros(ThreeConvolutions):
    """A tensor that needs no gradient when made, and does once something was written into it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        z = torch.zeros_like(y)
        z[:, 1:3] = y[:, :2]
        return self.c(self.b(z)) + z


class Transposes(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        t = self.a(x).mT
        return self.c(self.b(t.contiguous().mT)) + t.mT + t.transpose(0, 2).sum()


class WritesIntoACopyOfATransposed(ThreeConvolutions):
    """contiguous() copies on one device; on the receiving stage the tensor is contiguous already."""

    def forward(self, x: Tensor) -> Tensor:
        t = self.a(x).mT
        z = self.b(t.mT)
        u = t.contiguous().mul_(3)
        v = t.reshape(-1)
        v.add_(1)
        return self.c(z) + u.mT + v.sum() + t.mT


class WritesIntoACopyOfASlice(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        t = self.a(x)[:, :, ::2]
        z = self.b(t)
        u = t.contiguous()
        u.add_(1)
        return self.c(z) + u + t


class WritesIntoACopyOfAnExpanded(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        e = x.mean(2, keepdim=True).expand(-1, -1, x.shape[2])
        y = self.b(x)
        f = e.contiguous()
        f.add_(1)
        return self.c(y) + f + e


class AddsAnAxisInPlace(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = x * 1
        y.unsqueeze_(0)
        y = y * 2
        return self.c(self.b(x)) + y[0]


class MakesTensors(ThreeConvolutions):
    """Factory functions without a tensor argument, read by later stages; a device that is asked for."""

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[-1], device=x.device)
        mask = torch.ones(x.shape[-1], dtype=torch.bool)
        y = self.b(self.a(x) + positions)
        y = torch.where(mask, y, 0.0)
        return self.c(y) + positions + torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1)


class TensorsOutOfSight(ThreeConvolutions):
    """from_numpy and the old constructor are no torch functions: no mode sees them."""

    def forward(self, x: Tensor) -> Tensor:
        import numpy as np

        x = self.a(x) * torch.from_numpy(np.full((1,), 2.0))
        return self.c(self.b(x)) * torch.Tensor([2.0]).double()


class WithoutGradient(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        with torch.no_grad():
            y = self.b(x) * 2
        return self.c(x) * y + y


class FirstReadWithoutGradient(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        w = self.b(x)
        with torch.no_grad():
            n = w.norm()
        return self.c(w / n) + x.detach() + x


class WritesToAnOutArgument(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        with torch.no_grad():
            out = torch.empty_like(x)
            torch.mul(x, 2, out=out)
        return self.c(self.b(x)) + out


class AsksForGradient(ThreeConvolutions):
    """Does something else in prediction, where autograd is off."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        if x.requires_grad:
            x = x * 3
        return self.c(x)

"""Small networks that do what makes a split hard: views, in-place writes, gradients switched off, random numbers."""

from typing import Any

import torch
import torch.nn.functional as F
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


class CalledTwice(ThreeConvolutions):
    """One module under two names, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.d = self.b

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x)).relu())) + 1


class TiedParameters(ThreeConvolutions):
    def __init__(self) -> None:
        super().__init__()
        self.c.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)).relu()).sigmoid()


class UnusedParameters(ThreeConvolutions):
    def __init__(self) -> None:
        super().__init__()
        self.never = conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


class ViewsOfParameters(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.b.weight.flip(0)
        same = self.b.bias.contiguous()
        return F.conv1d(self.c(self.a(x)), weight, same, padding=1) + self.a.bias.view(1, 4, 1)


class _TripledSwish(torch.autograd.Function):
    """Its backward is three times what autograd would find: to be seen if it is lost."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return 3 * gradients[0] * s * (1 + x * (1 - s))


class CustomFunction(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x = _TripledSwish.apply(self.a(x))  # type: ignore[no-untyped-call]
        return self.c(_TripledSwish.apply(self.b(x))) + x  # type: ignore[no-untyped-call]


class UpdatesABufferThatItReads(ThreeConvolutions):
    """Recomputing must find the buffer as it was before this micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean((0, 2), keepdim=True), alpha=0.1)
        y = self.b(x - self.mean)
        return self.c(y)


class WritesIntoItsInput(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x.sub_(x.mean()).div_(3)
        return self.c(self.b(self.a(x)))


class BatchNorms(ThreeConvolutions):
    def __init__(self) -> None:
        super().__init__()
        self.n, self.m = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.m(self.b(self.n(self.a(x)).relu_())))


class ReturnsADict(ThreeConvolutions):
    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.a(x)
        y = self.b(x)
        return {"out": self.c(y), "early": [x, (y.relu(), y.argmax(1))]}


class KeepsItsOutputs(ThreeConvolutions):
    """As DynUNet's heads: overwritten in every pass, never read from an earlier one."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = [None, None]

    def forward(self, x: Tensor) -> Tensor:
        self.seen[0] = self.a(x)
        self.seen[1] = self.b(self.seen[0])
        return self.c(self.seen[1]) + self.seen[0]


class UnreadBranch(ThreeConvolutions):
    """Something computed that the loss does not depend on."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(x)
        z = self.c(y)
        (x + z).sum()
        return z


class ScalarsAndEmpties(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        mean, empty = x.mean(), x[:, :, :0]
        return self.c(self.b(x)) * mean + empty.sum()


class Iterates(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(torch.stack([t * float(n) for n, t in enumerate(self.b(x))])) + x


class RandomNumbers(ThreeConvolutions):
    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.a(x), 0.4, self.training)
        y = self.b(x)
        if self.training:
            y = y + torch.randn_like(y) + torch.empty(4, 1).uniform_()
        return self.c(F.alpha_dropout(y, 0.2, self.training))


class DropoutThenInPlace(ThreeConvolutions):
    """In eval mode dropout returns its input, so that the in-place write reaches further back."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(F.dropout(self.a(x), 0.3, self.training), 0.1, inplace=True)
        x = F.instance_norm(self.b(x))
        return self.c(F.relu(F.dropout(x, 0.3, self.training), inplace=True))


class Attention(ThreeConvolutions):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        t = self.a(x).mT
        y, _ = self.attention(t, t, t, need_weights=False)
        return self.c(self.b(y.mT))


EXACT: tuple[type[ThreeConvolutions], ...] = (
    AddsAnAxisInPlace,
    AsksForGradient,
    BatchNorms,
    CalledTwice,
    ChunksAndSplits,
    CustomFunction,
    FillsZeros,
    FirstReadWithoutGradient,
    Iterates,
    KeepsItsOutputs,
    MakesTensors,
    ReturnTypes,
    ReturnsADict,
    ScalarsAndEmpties,
    SetsItems,
    TensorsOutOfSight,
    TiedParameters,
    Transposes,
    UnreadBranch,
    UnusedParameters,
    UpdatesABufferThatItReads,
    ViewsOfParameters,
    WithoutGradient,
    WritesIntoACopyOfASlice,
    WritesIntoACopyOfATransposed,
    WritesIntoACopyOfAnExpanded,
    WritesIntoItsInput,
    WritesThroughViews,
    WritesToAnOutArgument,
)
RANDOM: tuple[type[ThreeConvolutions], ...] = (RandomNumbers, DropoutThenInPlace, Attention)

"""Small networks that are hard to split for what they hold: parameters, buffers, custom functions, random numbers."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.equivalence.awkward import ThreeConvolutions, conv


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


class PassesABufferOn(ThreeConvolutions):
    """A later stage reads a view of a buffer, which the next micro-batch may have changed by then."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if self.training:
            self.mean.mul_(0.9).add_(x.detach().mean((0, 2), keepdim=True), alpha=0.1)
        view = self.mean[:, :, 0:]
        return self.c(self.b(x)) + view


class SharesGradients(ThreeConvolutions):
    """Autograd hands one gradient to two values: neither may be added to in place."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y, z = x * 2, x * 3
        u = self.b(y).tanh() + z.sum()
        return self.c(u) + (y + z)


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

"""A norm on slabs whose ranks are threads of one process, on any device; and what one device makes of the whole."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lampseg.parallel.spatial.exchange import Axis
from lampseg.parallel.spatial.norm import BATCH, INSTANCE, Cut, Sets, normalise

EPS = 1e-3
GROUPS = 2
KINDS = {"instance": INSTANCE, "batch": BATCH, "group": Sets(groups=GROUPS)}
WHOLE: dict[str, Callable[..., Tensor]] = {
    "instance": lambda x, w, b: F.instance_norm(x, weight=w, bias=b, eps=EPS),
    "batch": lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True, eps=EPS),
    "group": lambda x, w, b: F.group_norm(x, GROUPS, w, b, EPS),
}


class Shared:
    """What the ranks of an axis put together."""

    def __init__(self, size: int) -> None:
        self.parts: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=30)


@dataclass(frozen=True)
class ThreadAxis(Axis):
    """Ranks are threads."""

    shared: Shared | None = None

    def _together(self, x: Tensor) -> Tensor:
        assert self.shared is not None
        self.shared.parts[self.rank] = x.detach().clone()
        self.shared.barrier.wait()
        parts = torch.stack(self.shared.parts)
        self.shared.barrier.wait()
        return parts

    def all_gather(self, x: Tensor) -> Tensor:
        return self._together(x)

    def all_reduce(self, x: Tensor, op: Any = None) -> None:
        x.copy_(self._together(x).sum(0))


@dataclass(frozen=True)
class Case:
    """A norm of (2, 6, 12, 5, 4) voxels, cut along the third dimension."""

    kind: str
    planes: tuple[int, ...]
    affine: bool = True
    dtype: torch.dtype = torch.float64
    device: str = "cpu"

    def data(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Input, gradient at the result, weight and bias; one weight is 0."""
        generator = torch.Generator().manual_seed(0)
        shape = (2, 6, sum(self.planes), 5, 4)
        x, grad = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
        weight, bias = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(2))
        weight[3] = 0
        x = x * torch.linspace(0.5, 2, 6, dtype=torch.float64).view(-1, 1, 1, 1) + 3
        # The parameters stay float32 in mixed precision.
        types = self.dtype, self.dtype, *[torch.promote_types(self.dtype, torch.float32)] * 2
        x, grad, weight, bias = (t.to(self.device, d) for t, d in zip((x, grad, weight, bias), types))
        return x, grad, weight, bias

    def whole(self) -> dict[str, Tensor]:
        """In float64 on one device."""
        x, grad, weight, bias = (t.double() for t in self.data())
        leaves = [t.requires_grad_() for t in (x, weight, bias)]
        out = WHOLE[self.kind](x, *((weight, bias) if self.affine else (None, None)))
        out.backward(grad)
        return _results(out, leaves, self.affine)

    def slabs(self, *, fused: bool) -> dict[str, Tensor]:
        """All ranks' slabs put together, the parameters' gradients added."""
        x, grad, weight, bias = self.data()
        shared = Shared(len(self.planes))

        def one(rank: int) -> dict[str, Tensor]:
            axis = ThreadAxis(0, 2, len(self.planes), rank, None, shared=shared)
            mine = x.split(self.planes, 2)[rank].clone()
            leaves = [t.clone().requires_grad_() for t in (mine, weight, bias)]
            out, _ = normalise(
                leaves[0],
                *(leaves[1:] if self.affine else (None, None)),
                eps=EPS,
                sets=KINDS[self.kind],
                cuts=[Cut(axis, self.planes)],
                fused=fused,
            )
            assert out.dtype == self.dtype
            out.backward(grad.split(self.planes, 2)[rank])
            return _results(out, leaves, self.affine)

        with ThreadPoolExecutor(len(self.planes)) as pool:
            ranks = list(pool.map(one, range(len(self.planes))))
        return {
            name: torch.cat([r[name] for r in ranks], 2) if ranks[0][name].dim() > 1 else sum(r[name] for r in ranks)
            for name in ranks[0]
        }  # type: ignore[return-value]


def _results(out: Tensor, leaves: list[Tensor], affine: bool) -> dict[str, Tensor]:
    names = ("input", "weight", "bias")[: 3 if affine else 1]
    found = {name: leaf.grad for name, leaf in zip(names, leaves)}
    assert all(grad is not None for grad in found.values())
    return {"out": out.detach(), **found}  # type: ignore[dict-item]

"""Layers: a unit's convolutions, on one slab at a time; gradients of their parameters add up over the slabs."""

import torch
from torch import Tensor

from lampseg.parallel.tiled.convolutions import Convolution
from lampseg.parallel.tiled.folded import how_to


class Layer:
    """A convolution of a unit.

    Args:
        weight, bias: its parameters, as autograd has them.
        dtype: in which it computes.
        wanted: whether weight and bias have gradients.
    """

    def __init__(
        self,
        convolution: Convolution,
        weight: Tensor,
        bias: Tensor | None,
        *,
        dtype: torch.dtype,
        wanted: tuple[bool, bool] = (False, False),
    ) -> None:
        self._args, self._wanted = convolution.args, wanted
        self._parameters = weight, bias
        self._weight, self._bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        self._to_weight: Tensor | None = None
        self._to_bias: Tensor | None = None

    @property
    def trained(self) -> bool:
        return any(self._wanted)

    def run(self, slab: Tensor) -> Tensor:
        return how_to(self._args, slab, self._weight).run(slab, self._weight, self._bias)

    def backward(self, grad: Tensor, slab: Tensor, *, to_slab: bool) -> Tensor | None:
        """The gradient of the slab, if asked for; those of the parameters are added to the sums."""
        if not (to_slab or self.trained):
            return None
        sizes = None if self._bias is None else list(self._bias.shape)
        wanted = [to_slab, self._wanted[0], self._wanted[1] and sizes is not None]
        how = how_to(self._args, slab, self._weight)
        found, to_weight, to_bias = how.gradients(grad, slab, self._weight, sizes, wanted)
        self._to_weight, self._to_bias = _sum(self._to_weight, to_weight), _sum(self._to_bias, to_bias)
        return found

    def of_parameters(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of weight and bias."""
        pairs = zip((self._to_weight, self._to_bias), self._parameters, strict=True)
        to_weight, to_bias = (None if grad is None or like is None else grad.to(like.dtype) for grad, like in pairs)
        return to_weight, to_bias


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if more is None:
        return total
    more = more.to(torch.promote_types(more.dtype, torch.float32))
    return more if total is None else total.add_(more)

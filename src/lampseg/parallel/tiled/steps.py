"""Steps: a norm and an activation before or after a unit's convolution, on one tile at a time."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lampseg.parallel.tiled.activations import Activation
from lampseg.parallel.tiled.norms import Norm, Rows, Sums


@dataclass(frozen=True)
class Step:
    """[norm] [activation]; it has at least one of them."""

    norm: Norm | None
    activation: Activation | None
    normed: torch.dtype
    """Of the norm's result."""
    dtype: torch.dtype
    """Of the result."""

    @property
    def live(self) -> bool:
        """Whether it needs statistics of its whole input."""
        return self.norm is not None and self.norm.live


@dataclass(frozen=True)
class Constants:
    """What a step does to every tile."""

    step: Step
    rows: Rows | None
    weight: Tensor | None
    bias: Tensor | None
    slope: Tensor | None

    def apply_(self, tile: Tensor, *, own: bool) -> Tensor:
        """The step's result: the tile itself if that could be done in place.

        Args:
            own: whether the tile may be written to.
        """
        z = self._activated(tile, own=own)
        if self.step.activation is not None:
            z = self.step.activation.apply_(z if own or z is not tile else z.clone(), self.slope)
        return z.to(self.step.dtype)

    def _activated(self, tile: Tensor, *, own: bool) -> Tensor:
        """What the activation is given."""
        if self.rows is None:
            return tile.to(self.step.normed)
        factor, summand = (_over_space(t, tile) for t in self.rows.affine(self.weight, self.bias))
        if own and tile.dtype == factor.dtype:
            return tile.mul_(factor).add_(summand).to(self.step.normed)
        return torch.addcmul(summand, tile.to(factor.dtype), factor).to(self.step.normed)

    def normalised(self, tile: Tensor) -> Tensor:
        """Before weight and bias; needs a norm."""
        assert self.rows is not None
        return (tile - _over_space(self.rows.mean, tile)).mul_(_over_space(self.rows.rstd, tile))

    def at_norm(self, grad: Tensor, tile: Tensor) -> tuple[Tensor, Tensor | None]:
        """The gradient at the norm's result (without one, at the step's input), and that of PReLU's slopes.

        Args:
            grad: of the step's result.
            tile: of its input.
        """
        exact = grad.dtype if self.rows is None else self.rows.rstd.dtype
        if self.step.activation is None:
            return grad.to(exact), None
        z = self._activated(tile, own=False)
        to_z, to_slope = self.step.activation.backward(grad.to(z.dtype), z, self.slope)
        return to_z.to(exact), to_slope


class Backward:
    """The backward of a step: first the sums over all tiles, then the gradient of its input, tile by tile."""

    def __init__(self, constants: Constants) -> None:
        self.constants = constants
        self.sums = Sums()
        self.slope: Tensor | None = None
        self._of_input: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, grad: Tensor, tile: Tensor) -> None:
        """Adds one tile to the sums."""
        at_norm, to_slope = self.constants.at_norm(grad, tile)
        self._add(at_norm, tile, to_slope)

    def _add(self, at_norm: Tensor, tile: Tensor, to_slope: Tensor | None) -> None:
        if self.constants.rows is not None:
            self.sums.add(at_norm, self.constants.normalised(tile))
        if to_slope is not None:
            self.slope = to_slope if self.slope is None else self.slope + to_slope

    def of_input(self, grad: Tensor, tile: Tensor) -> Tensor:
        """The gradient of a tile of the step's input; with live statistics, all tiles have been added."""
        constants = self.constants
        at_norm, to_slope = constants.at_norm(grad, tile)
        if constants.rows is None:
            self._add(at_norm, tile, to_slope)
            return at_norm
        assert constants.step.norm is not None
        if not constants.step.live:
            self._add(at_norm, tile, to_slope)
            factor, _ = constants.rows.affine(constants.weight, None)
            return at_norm * _over_space(factor, tile)
        if self._of_input is None:
            self._of_input = self.sums.of_input(constants.rows, constants.weight, constants.step.norm.reduce)
        slope, product, summand = (_over_space(t, tile) for t in self._of_input)
        found = constants.normalised(tile).mul_(product).add_(summand)
        return found.addcmul_(at_norm, slope)

    def of_parameters(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of the norm's weight and bias, and of PReLU's slopes; None where there is none."""
        constants = self.constants
        weight = bias = None
        if constants.rows is not None:
            to_weight, to_bias = self.sums.of_parameters()
            weight = None if constants.weight is None else to_weight.to(constants.weight.dtype)
            bias = None if constants.bias is None else to_bias.to(constants.bias.dtype)
        slope = None if self.slope is None or constants.slope is None else self.slope.to(constants.slope.dtype)
        return weight, bias, slope


def _over_space(rows: Tensor, like: Tensor) -> Tensor:
    """(N, C) to (N, C, 1, ...)."""
    return rows.view(*rows.shape, *[1] * (like.dim() - 2))

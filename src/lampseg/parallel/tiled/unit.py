"""A unit as one autograd function: forward and backward run tile by tile, and only its inputs are kept.

Kept are the inputs (which may be several: their concatenation is never made), the parameters, and the statistics of
every row. The backward makes again what lay between, one tile at a time: first to sum up what the norms need, then for
the gradients. A convolution runs again only if a norm or an activation follows it in the unit.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lampseg.parallel.tiled.convolutions import Convolution
from lampseg.parallel.tiled.norms import Rows, Statistics
from lampseg.parallel.tiled.planes import TILED, tiles
from lampseg.parallel.tiled.steps import Backward, Constants, Step


@dataclass(frozen=True)
class Call:
    """One call of a unit, without its tensors that have gradients."""

    before: Step | None
    convolution: Convolution
    after: Step | None
    convolved: torch.dtype
    """In which the convolution computes."""
    shape: tuple[int, ...]
    """Of the output; and so on."""
    stride: tuple[int, ...]
    dtype: torch.dtype
    thickness: int
    """Of a tile of the output, in planes."""
    thickness_before: int
    """Of a tile of the input, where the step before is computed without the convolution."""


def run(call: Call, inputs: list[Tensor], *, slopes: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """The unit's output.

    Args:
        inputs: of which the first operation makes a concatenation, or the one.
        slopes: of PReLU before and after the convolution.
    """
    parameters: list[Tensor | None] = [call.convolution.weight, call.convolution.bias]
    for step, slope in zip((call.before, call.after), slopes, strict=True):
        norm = None if step is None else step.norm
        parameters += [None if norm is None else norm.weight, None if norm is None else norm.bias, slope]
    with torch.autocast(inputs[0].device.type, enabled=False):
        out: Tensor = _Unit.apply(call, *parameters, *inputs)  # type: ignore[no-untyped-call]
    return out


_PARAMETERS = 8
"""Weight and bias of the convolution; weight, bias and slopes of each step."""


class _Unit(Function):
    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor | None) -> Tensor:
        parameters, inputs = tensors[:_PARAMETERS], [t for t in tensors[_PARAMETERS:] if t is not None]
        before = None
        if call.before is not None:
            before = Constants(call.before, _statistics_before(call, inputs), *parameters[2:5])
        unit = _Tiles(call, parameters, inputs, before)
        out = torch.empty_strided(call.shape, call.stride, dtype=call.dtype, device=inputs[0].device)
        rows: Rows | None
        if call.after is not None and call.after.live:
            rows = _statistics_after(call, unit, out)
            after = Constants(call.after, rows, *parameters[5:8])
            for begin, end in tiles(call.shape[TILED], call.thickness):
                tile = _planes(out, begin, end)
                made = after.apply_(tile.to(call.convolved), own=True)
                if made is not tile:
                    tile.copy_(made)
                del made
        else:
            rows = _fixed(call.after, inputs[0])
            fixed = None if call.after is None else Constants(call.after, rows, *parameters[5:8])
            for begin, end in tiles(call.shape[TILED], call.thickness):
                convolved = unit.convolved(begin, end)
                _planes(out, begin, end).copy_(convolved if fixed is None else fixed.apply_(convolved, own=True))
                del convolved
        ctx.call = call
        ctx.rows = [None if before is None else before.rows, rows]
        ctx.save_for_backward(*parameters, *inputs)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Any:
        call: Call = ctx.call
        parameters, inputs = ctx.saved_tensors[:_PARAMETERS], list(ctx.saved_tensors[_PARAMETERS:])
        wanted = ctx.needs_input_grad[1:]
        before = None if call.before is None else Constants(call.before, ctx.rows[0], *parameters[2:5])
        after = None if call.after is None else Constants(call.after, ctx.rows[1], *parameters[5:8])
        unit = _Tiles(call, parameters, inputs, before)
        back_after = None if after is None else Backward(after)
        if back_after is not None and call.after is not None and call.after.live:
            for begin, end in tiles(call.shape[TILED], call.thickness):
                back_after.add(_planes(grad, begin, end), unit.convolved(begin, end))
        to_inputs = any(wanted[_PARAMETERS:]) or (before is not None and any(wanted[2:5]))
        gradients = _Gathered(inputs, wanted[_PARAMETERS:], everything=before is not None) if to_inputs else None
        weights = _Weights(wanted[:2])
        for begin, end in tiles(call.shape[TILED], call.thickness):
            slab = unit.padded(begin, end)
            part = _planes(grad, begin, end)
            if back_after is not None:
                part = back_after.of_input(part, unit.convolve(slab))
            to_slab = weights.add(call, parameters, part.to(call.convolved), slab, to_input=to_inputs)
            del part, slab
            if gradients is not None and to_slab is not None:
                gradients.add(to_slab, begin, end, reach=call.convolution.reach)
            del to_slab
        of_before: tuple[Tensor | None, ...] = (None, None, None)
        if gradients is not None:
            gradients.finish()
        if before is not None and gradients is not None:
            of_before = gradients.through(before, inputs, thickness=call.thickness_before)
        of_after = (None, None, None) if back_after is None else back_after.of_parameters()
        given = [None] * len(inputs) if gradients is None else gradients.wanted()
        return None, *weights.like(parameters), *of_before, *of_after, *given


class _Tiles:
    """Makes parts of a unit again and again: a tile of the convolution's input and of its output."""

    def __init__(self, call: Call, parameters: Any, inputs: list[Tensor], before: Constants | None) -> None:
        self.call, self.inputs, self.before = call, inputs, before
        self.weight = parameters[0].to(call.convolved)
        self.bias = None if parameters[1] is None else parameters[1].to(call.convolved)

    def padded(self, begin: int, end: int) -> Tensor:
        """What the convolution reads for a tile of its output, with the zeros around the volume."""
        planes = self.inputs[0].shape[TILED]
        low, high, zeros_before, zeros_after = self.call.convolution.reach.inputs(begin, end, planes)
        slab = _joined(self.inputs, low, high)
        if self.before is not None:
            slab = self.before.apply_(slab, own=len(self.inputs) > 1)
        slab = slab.to(self.call.convolved)
        if zeros_before or zeros_after:
            slab = F.pad(slab, (*[0] * (2 * (slab.dim() - 3)), zeros_before, zeros_after))
        return slab

    def convolve(self, slab: Tensor) -> Tensor:
        return self.call.convolution.args.run(slab, self.weight, self.bias)

    def convolved(self, begin: int, end: int) -> Tensor:
        return self.convolve(self.padded(begin, end))


class _Weights:
    """Gradients of the convolution's weight and bias, over the tiles so far."""

    def __init__(self, wanted: tuple[bool, ...]) -> None:
        self.to_weight, self.to_bias = wanted
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def add(self, call: Call, parameters: Any, grad: Tensor, slab: Tensor, *, to_input: bool) -> Tensor | None:
        """The gradient of the slab."""
        if not (to_input or self.to_weight or self.to_bias):
            return None
        bias = None if parameters[1] is None else list(parameters[1].shape)
        wanted = [to_input, self.to_weight, self.to_bias and bias is not None]
        weight = parameters[0].to(call.convolved)
        to_slab, to_weight, to_bias = call.convolution.args.gradients(grad, slab, weight, bias, wanted)
        self.weight, self.bias = _sum(self.weight, to_weight), _sum(self.bias, to_bias)
        return to_slab

    def like(self, parameters: Any) -> tuple[Tensor | None, Tensor | None]:
        weight = None if self.weight is None else self.weight.to(parameters[0].dtype)
        return weight, None if self.bias is None else self.bias.to(parameters[1].dtype)


class _Gathered:
    """Gradients of the inputs, to which neighbouring tiles add where their planes overlap."""

    def __init__(self, inputs: list[Tensor], wanted: tuple[bool, ...], *, everything: bool) -> None:
        self._wanted = wanted
        self._sizes = [x.shape[1] for x in inputs]
        self._planes = inputs[0].shape[TILED]
        self._grads = [torch.empty_like(x) if want or everything else None for x, want in zip(inputs, wanted)]
        self._done = 0

    def add(self, slab: Tensor, begin: int, end: int, *, reach: Any) -> None:
        low, high, zeros_before, _ = reach.inputs(begin, end, self._planes)
        slab = slab.narrow(TILED, zeros_before, high - low)
        old = min(max(self._done - low, 0), high - low)
        for grad, part in zip(self._grads, slab.split(self._sizes, 1), strict=True):
            if grad is None:
                continue
            _planes(grad, self._done, low).zero_() if low > self._done else None
            _planes(grad, low, low + old).add_(part.narrow(TILED, 0, old)) if old else None
            _planes(grad, low + old, high).copy_(part.narrow(TILED, old, high - low - old))
        self._done = max(self._done, high)

    def finish(self) -> None:
        """Planes that no output read have no gradient."""
        for grad in self._grads:
            if grad is not None and self._done < self._planes:
                _planes(grad, self._done, self._planes).zero_()

    def through(self, before: Constants, inputs: list[Tensor], *, thickness: int) -> tuple[Tensor | None, ...]:
        """Turns them from those of the step's result into those of its input; gives those of its parameters."""
        grads = [grad for grad in self._grads if grad is not None]
        back = Backward(before)
        if before.step.live:
            for begin, end in tiles(self._planes, thickness):
                back.add(_joined(grads, begin, end), _joined(inputs, begin, end))
        for begin, end in tiles(self._planes, thickness):
            found = back.of_input(_joined(grads, begin, end), _joined(inputs, begin, end))
            for grad, part in zip(grads, found.split(self._sizes, 1), strict=True):
                _planes(grad, begin, end).copy_(part)
            del found
        return back.of_parameters()

    def wanted(self) -> list[Tensor | None]:
        return [grad if want else None for grad, want in zip(self._grads, self._wanted, strict=True)]


def _statistics_before(call: Call, inputs: list[Tensor]) -> Rows | None:
    step = call.before
    if step is None or step.norm is None or not step.live:
        return _fixed(step, inputs[0])
    found = Statistics()
    for begin, end in tiles(inputs[0].shape[TILED], call.thickness_before):
        found.add(_joined(inputs, begin, end))
    return step.norm.rows(found)


def _statistics_after(call: Call, unit: _Tiles, out: Tensor) -> Rows:
    """Of what the convolution makes, which is left in `out`."""
    assert call.after is not None
    assert call.after.norm is not None
    found = Statistics()
    for begin, end in tiles(call.shape[TILED], call.thickness):
        convolved = unit.convolved(begin, end)
        found.add(convolved)
        _planes(out, begin, end).copy_(convolved)
        del convolved
    return call.after.norm.rows(found)


def _fixed(step: Step | None, like: Tensor) -> Rows | None:
    """Of a norm that uses its running statistics."""
    if step is None or step.norm is None:
        return None
    return step.norm.fixed(like.shape[0], torch.promote_types(like.dtype, torch.float32))


def _planes(tensor: Tensor, begin: int, end: int) -> Tensor:
    return tensor.narrow(TILED, begin, end - begin)


def _joined(inputs: list[Tensor], begin: int, end: int) -> Tensor:
    """Planes of the concatenation."""
    parts = [_planes(x, begin, end) for x in inputs]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _sum(total: Tensor | None, more: Tensor | None) -> Tensor | None:
    if more is None:
        return total
    more = more.to(torch.promote_types(more.dtype, torch.float32))
    return more if total is None else total.add_(more)

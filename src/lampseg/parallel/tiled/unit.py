"""A unit as one autograd function: forward and backward run tile by tile, and only its inputs are kept.

Kept are the inputs (which may be several: their concatenation is never made), the parameters, and the statistics of
every row. The backward makes again what lay between, one tile at a time: first to sum up what the norms need, then for
the gradients. A convolution runs again only if something follows it in the unit.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from lampseg.parallel.tiled.convolutions import Convolution
from lampseg.parallel.tiled.gathered import Gathered
from lampseg.parallel.tiled.layers import Layer
from lampseg.parallel.tiled.norms import Rows, Statistics
from lampseg.parallel.tiled.planes import TILED, joined, planes_of, tiles
from lampseg.parallel.tiled.steps import Backward, Constants, Step


@dataclass(frozen=True)
class Call:
    """One call of a unit, without its tensors that have gradients."""

    pointwise: Convolution | None
    """Of kernel 1, just before the convolution; there is no step before then."""
    before: Step | None
    convolution: Convolution
    after: Step | None
    convolved: torch.dtype
    """In which the convolutions compute."""
    shape: tuple[int, ...]
    """Of the output; and so on."""
    stride: tuple[int, ...]
    dtype: torch.dtype
    thickness: int
    """Of a tile of the output, in planes."""
    thickness_before: int
    """Of a tile of the input, where the step before is computed without the convolution."""
    overwritten: int | None = None
    """Without gradients: the input whose memory becomes the output's; nobody reads it afterwards."""


def run(call: Call, inputs: list[Tensor], *, slopes: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """The unit's output.

    Args:
        inputs: of which the first operation makes a concatenation, or the one.
        slopes: of PReLU before and after the convolution.
    """
    parameters: list[Tensor | None] = []
    for layer in (call.convolution, call.pointwise):
        parameters += [None, None] if layer is None else [layer.weight, layer.bias]
    for step, slope in zip((call.before, call.after), slopes, strict=True):
        norm = None if step is None else step.norm
        parameters += [None if norm is None else norm.weight, None if norm is None else norm.bias, slope]
    with torch.autocast(inputs[0].device.type, enabled=False):
        if not torch.is_grad_enabled():
            return _computed(call, parameters, inputs)[0]
        out: Tensor = _Unit.apply(call, *parameters, *inputs)  # type: ignore[no-untyped-call]
    return out


_POINTWISE, _BEFORE, _AFTER, _INPUTS = 2, 4, 7, 10
"""Where the parameters begin: of the convolution at 0, of the pointwise one, of each step; and then the inputs."""


class _Unit(Function):
    @staticmethod
    def forward(ctx: Any, call: Call, *tensors: Tensor | None) -> Tensor:
        parameters, inputs = tensors[:_INPUTS], [t for t in tensors[_INPUTS:] if t is not None]
        out, rows = _computed(call, parameters, inputs)
        ctx.call = call
        ctx.rows = rows
        ctx.save_for_backward(*parameters, *inputs)
        return out

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> Any:
        call: Call = ctx.call
        parameters, inputs = ctx.saved_tensors[:_INPUTS], list(ctx.saved_tensors[_INPUTS:])
        wanted = ctx.needs_input_grad[1:]
        before = None if call.before is None else Constants(call.before, ctx.rows[0], *parameters[_BEFORE:_AFTER])
        after = None if call.after is None else Constants(call.after, ctx.rows[1], *parameters[_AFTER:])
        unit = _Tiles(call, parameters, inputs, before, wanted=wanted)
        back_after = None if after is None else Backward(after)
        if back_after is not None and call.after is not None and call.after.live:
            for begin, end in tiles(call.shape[TILED], call.thickness):
                back_after.add(planes_of(grad, begin, end), unit.convolved(begin, end))
        gathered = None
        if any(wanted[_INPUTS:]) or (before is not None and any(wanted[_BEFORE:_AFTER])):
            gathered = Gathered(inputs, wanted[_INPUTS:], everything=before is not None)
        for begin, end in tiles(call.shape[TILED], call.thickness):
            part = planes_of(grad, begin, end)
            to_inputs = unit.backward(part, back_after, begin, end, to_inputs=gathered is not None)
            if gathered is not None and to_inputs is not None:
                gathered.add(to_inputs, begin, end, reach=call.convolution.reach)
            del to_inputs
        of_before: tuple[Tensor | None, ...] = (None, None, None)
        if gathered is not None:
            gathered.finish()
        if before is not None and gathered is not None:
            of_before = gathered.through(before, inputs, thickness=call.thickness_before)
        of_after = (None, None, None) if back_after is None else back_after.of_parameters()
        given = [None] * len(inputs) if gathered is None else gathered.wanted()
        return None, *unit.of_parameters(), *of_before, *of_after, *given


def _computed(call: Call, parameters: Any, inputs: list[Tensor]) -> tuple[Tensor, tuple[Rows | None, Rows | None]]:
    """The output, and the statistics of the norms before and after the convolution."""
    before = None
    if call.before is not None:
        before = Constants(call.before, _statistics_before(call, inputs), *parameters[_BEFORE:_AFTER])
    unit = _Tiles(call, parameters, inputs, before)
    if call.overwritten is None:
        out = torch.empty_strided(call.shape, call.stride, dtype=call.dtype, device=inputs[0].device)
    else:
        out = inputs[call.overwritten].detach()
    rows: Rows | None
    if call.after is not None and call.after.live:
        rows = _statistics_after(call, unit, out)
        after = Constants(call.after, rows, *parameters[_AFTER:])
        for begin, end in tiles(call.shape[TILED], call.thickness):
            tile = planes_of(out, begin, end)
            made = after.apply_(tile.to(call.convolved), own=True)
            if made is not tile:
                tile.copy_(made)
            del made
    else:
        rows = _fixed(call.after, inputs[0])
        fixed = None if call.after is None else Constants(call.after, rows, *parameters[_AFTER:])
        for begin, end in tiles(call.shape[TILED], call.thickness):
            convolved = unit.convolved(begin, end)
            unit.before_writing(begin, end)
            planes_of(out, begin, end).copy_(convolved if fixed is None else fixed.apply_(convolved, own=True))
            del convolved
    return out, (None if before is None else before.rows, rows)


class _Tiles:
    """Makes parts of a unit again and again: a tile of the convolution's input and of its output."""

    def __init__(
        self,
        call: Call,
        parameters: Any,
        inputs: list[Tensor],
        before: Constants | None,
        *,
        wanted: tuple[bool, ...] = (False,) * _BEFORE,
    ) -> None:
        self.call, self.inputs, self.before = call, inputs, before
        self.reach, self.planes = call.convolution.reach, inputs[0].shape[TILED]
        dtype = call.convolved
        self.layer = Layer(call.convolution, *parameters[:_POINTWISE], dtype=dtype, wanted=(wanted[0], wanted[1]))
        self.pointwise = None
        if call.pointwise is not None:
            given = parameters[_POINTWISE:_BEFORE]
            self.pointwise = Layer(call.pointwise, *given, dtype=dtype, wanted=(wanted[2], wanted[3]))
        # Planes of the input that is overwritten, which the next tile reads; the last of them is before `_written`.
        self._carried: Tensor | None = None
        self._written = 0

    def convolved(self, begin: int, end: int) -> Tensor:
        """A tile of the convolution's output."""
        return self.layer.run(self._padded(self._read(begin, end), begin, end))

    def backward(self, grad: Tensor, after: Backward | None, begin: int, end: int, *, to_inputs: bool) -> Tensor | None:
        """The gradient of what a tile of the unit's output reads; with a step before, that of the step's result."""
        read = self._read(begin, end)
        slab = self._padded(read, begin, end)
        if after is not None:
            grad = after.of_input(grad, self.layer.run(slab))
        needed = to_inputs or (self.pointwise is not None and self.pointwise.trained)
        found = self.layer.backward(grad.to(self.call.convolved), slab, to_slab=needed)
        if found is None:
            return None
        low, high, zeros, _ = self.reach.inputs(begin, end, self.planes)
        found = found.narrow(TILED, zeros, high - low)
        return found if self.pointwise is None else self.pointwise.backward(found, read, to_slab=to_inputs)

    def of_parameters(self) -> tuple[Tensor | None, ...]:
        """Gradients of the convolutions' weights and biases."""
        return *self.layer.of_parameters(), *(
            (None, None) if self.pointwise is None else self.pointwise.of_parameters()
        )

    def _read(self, begin: int, end: int) -> Tensor:
        """What a tile of the output reads of the inputs, after the step before."""
        low, high, _, _ = self.reach.inputs(begin, end, self.planes)
        slab = self._joined(low, high)
        if self.before is not None:
            slab = self.before.apply_(slab, own=len(self.inputs) > 1)
        return slab.to(self.call.convolved)

    def before_writing(self, begin: int, end: int) -> None:
        """Saves what the next tile reads of these planes of the output, if they lie in an input's memory."""
        if self.call.overwritten is None:
            return
        low = min(max(end - self.reach.padding, 0), end)
        self._carried = self._of_overwritten(low, end).clone()
        self._written = end

    def _joined(self, low: int, high: int) -> Tensor:
        """Planes of the concatenation of the inputs, as they were given."""
        if self._written == 0 or self.call.overwritten is None:
            return joined(self.inputs, low, high)
        parts = [planes_of(x, low, high) for x in self.inputs]
        parts[self.call.overwritten] = self._of_overwritten(low, high)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def _of_overwritten(self, low: int, high: int) -> Tensor:
        """Planes of the input that is overwritten."""
        assert self.call.overwritten is not None
        x = self.inputs[self.call.overwritten]
        if low >= self._written or self._carried is None:
            return planes_of(x, low, high)
        old = planes_of(self._carried, self._carried.shape[TILED] - (self._written - low), self._carried.shape[TILED])
        return torch.cat([old, planes_of(x, self._written, high)], TILED)

    def _padded(self, read: Tensor, begin: int, end: int) -> Tensor:
        """What the convolution is given: with the zeros around the volume."""
        slab = read if self.pointwise is None else self.pointwise.run(read)
        _, _, *zeros = self.reach.inputs(begin, end, self.planes)
        return F.pad(slab, (*[0] * (2 * (slab.dim() - 3)), *zeros)) if any(zeros) else slab


def _statistics_before(call: Call, inputs: list[Tensor]) -> Rows | None:
    step = call.before
    if step is None or step.norm is None or not step.live:
        return _fixed(step, inputs[0])
    found = Statistics()
    for begin, end in tiles(inputs[0].shape[TILED], call.thickness_before):
        found.add(joined(inputs, begin, end))
    return step.norm.rows(found)


def _statistics_after(call: Call, unit: _Tiles, out: Tensor) -> Rows:
    """Of what the convolution makes, which is left in `out`."""
    assert call.after is not None
    assert call.after.norm is not None
    found = Statistics()
    for begin, end in tiles(call.shape[TILED], call.thickness):
        convolved = unit.convolved(begin, end)
        found.add(convolved)
        unit.before_writing(begin, end)
        planes_of(out, begin, end).copy_(convolved)
        del convolved
    return call.after.norm.rows(found)


def _fixed(step: Step | None, like: Tensor) -> Rows | None:
    """Of a norm that uses its running statistics."""
    if step is None or step.norm is None:
        return None
    return step.norm.fixed(like.shape[0], torch.promote_types(like.dtype, torch.float32))

"""From the noted calls of a unit's operations to one call of the unit, where all their arguments are known ones."""

import itertools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lampseg.parallel.tiled.activations import Activation, activation_of
from lampseg.parallel.tiled.convolutions import convolution_of
from lampseg.parallel.tiled.norms import Norm, norm_of
from lampseg.parallel.tiled.planes import TILED, thickness_of
from lampseg.parallel.tiled.steps import Step
from lampseg.parallel.tiled.unit import Call
from lampseg.parallel.tiled.units import Unit
from lampseg.recording.graph import Operation, Value
from lampseg.recording.kernels import storage_of


@dataclass(frozen=True)
class Reference:
    """Stands in the arguments of a call for what an earlier operation of the unit makes."""

    value: Value


@dataclass(frozen=True)
class Noted:
    """One call that has been put off."""

    op: Operation
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def input(self) -> Any:
        """Its first argument: a tensor, a reference, or (of a concatenation) a list."""
        if self.args:
            return self.args[0]
        return self.kwargs.get("input", self.kwargs.get("tensors"))

    @property
    def value(self) -> Value:
        return self.op.outputs[0].value


@dataclass(frozen=True)
class Found:
    """A call of a unit and its tensors."""

    call: Call
    inputs: list[Tensor]
    slopes: tuple[Tensor | None, Tensor | None]


def call_of(
    unit: Unit, noted: list[Noted], *, whole: tuple[int, ...], tile: int, dead: frozenset[int] = frozenset()
) -> Found | None:
    """None: some argument is none that is known here; the operations must run one by one.

    Args:
        whole: spatial size of the network's input.
        tile: planes of a tile of it.
        dead: positions among the inputs of those whose memory may be overwritten.
    """
    calls = {each.op.index: each for each in noted}
    inputs = _inputs(unit, calls, noted[0])
    convolution = calls[unit.convolution]
    found = convolution_of(convolution.func, convolution.args, convolution.kwargs)
    before = _step(calls, unit.norm_before, unit.activation_before, inputs[0].dtype if inputs else None)
    after = _step(calls, unit.norm_after, unit.activation_after, convolution.value.dtype)
    if not inputs or found is None or before is None or after is None or not _linked(noted):
        return None
    out = noted[-1].value
    pointwise = None
    if unit.pointwise is not None:
        first = calls[unit.pointwise]
        pointwise = convolution_of(first.func, first.args, first.kwargs)
        if pointwise is None or not pointwise.pointwise or first.value.dtype != convolution.value.dtype:
            return None
    if torch.promote_types(out.dtype, convolution.value.dtype) != out.dtype or not out.dtype.is_floating_point:
        return None
    thickness = thickness_of(tile, whole=whole, size=out.shape[2:])
    if len(noted) == 1 and thickness >= out.shape[TILED]:
        return None  # a convolution alone and in one piece
    call = Call(
        pointwise=pointwise,
        before=before[0],
        convolution=found,
        after=after[0],
        convolved=convolution.value.dtype,
        shape=out.shape,
        stride=out.stride,
        dtype=out.dtype,
        thickness=thickness,
        thickness_before=thickness_of(tile, whole=whole, size=tuple(inputs[0].shape[2:])),
    )
    call = replace(call, overwritten=_overwritten(call, inputs, dead))
    return Found(call, inputs, (before[1], after[1]))


def _overwritten(call: Call, inputs: list[Tensor], dead: frozenset[int]) -> int | None:
    """The input whose memory the output takes, plane by plane."""
    if call.convolution.reach.stride != 1 or len({storage_of(x) for x in inputs}) < len(inputs):
        return None
    for n in sorted(dead):
        x = inputs[n]
        alone = x.untyped_storage().nbytes() == x.numel() * x.element_size()
        if alone and (tuple(x.shape), x.stride(), x.dtype) == (call.shape, call.stride, call.dtype):
            return n
    return None


def _inputs(unit: Unit, calls: dict[int, Noted], first: Noted) -> list[Tensor]:
    """What the unit is given; empty: not tensors of (N, C, ...) alone."""
    given = [first.input]
    if unit.cat is not None:
        call = calls[unit.cat]
        rest = call.args[1:]
        dim = rest[0] if rest else call.kwargs.get("dim", call.kwargs.get("axis", 0))
        dims = len(call.value.shape)
        if (
            dim not in (1, 1 - dims)
            or not isinstance(call.input, list | tuple)
            or call.kwargs.keys() - {"dim", "tensors"}
        ):
            return []
        given = list(call.input)
    inputs = [x for x in given if isinstance(x, Tensor) and x.dim() > 2 and x.is_floating_point()]
    alike = len({x.dtype for x in inputs}) == 1
    return inputs if alike and len(inputs) == len(given) else []


def _linked(noted: list[Noted]) -> bool:
    """Whether each call is given what the one before makes, and that as its first argument alone."""
    for above, below in itertools.pairwise(noted):
        others = tree_leaves((below.args[1:], {**below.kwargs, "input": None}))
        if any(isinstance(leaf, Reference) for leaf in others):
            return False
        if not (isinstance(below.input, Reference) and below.input.value.id == above.value.id):
            return False
    return True


def _step(
    calls: dict[int, Noted], norm: int | None, activation: int | None, given: torch.dtype | None
) -> tuple[Step | None, Tensor | None] | None:
    """A step and PReLU's slopes; the step is None if there is none. Instead of both None: an unknown argument."""
    if given is None:
        return None
    if norm is None and activation is None:
        return None, None
    normed, made = given, given
    slope: Any = None
    known_norm: Norm | None = None
    known_activation: Activation | None = None
    if norm is not None:
        call = calls[norm]
        known_norm, normed = norm_of(call.func, call.args, call.kwargs), call.value.dtype
        made = normed
        if known_norm is None:
            return None
    if activation is not None:
        call = calls[activation]
        found, made = activation_of(call.func, call.args, call.kwargs), call.value.dtype
        if found is None:
            return None
        known_activation, slope = found
    return Step(known_norm, known_activation, normed, made), slope

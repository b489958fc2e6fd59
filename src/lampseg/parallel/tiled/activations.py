"""Activations: elementwise functions between convolutions, and their derivatives from what they were given."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_aten = torch.ops.aten

Options = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """One function, without its options."""

    forward: Callable[..., Tensor]
    """Of the input and the options; it may write to its input."""
    backward: Callable[..., Tensor]
    """Of the gradient, the input and the options."""
    options: tuple[tuple[str, Any], ...] = ()
    """Names and defaults, in the order of the arguments."""


def _relu_back(grad: Tensor, z: Tensor) -> Tensor:
    return _aten.threshold_backward(grad, z, 0)  # type: ignore[no-any-return]


def _hardtanh_back(grad: Tensor, z: Tensor, min_val: float, max_val: float) -> Tensor:
    return _aten.hardtanh_backward(grad, z, min_val, max_val)  # type: ignore[no-any-return]


def _elu_back(grad: Tensor, z: Tensor, alpha: float = 1.0, scale: float = 1.0, inner: float = 1.0) -> Tensor:
    return _aten.elu_backward(grad, alpha, scale, inner, False, z)  # type: ignore[no-any-return]


def _sigmoid_back(grad: Tensor, z: Tensor) -> Tensor:
    return _aten.sigmoid_backward(grad, torch.sigmoid(z))  # type: ignore[no-any-return]


def _tanh_back(grad: Tensor, z: Tensor) -> Tensor:
    return _aten.tanh_backward(grad, torch.tanh(z))  # type: ignore[no-any-return]


_SELU = (1.6732632423543772848170429916717, 1.0507009873554804934193349852946)
_RELU = Kind(torch.relu_, _relu_back)
_LEAKY = Kind(
    F.leaky_relu_,
    lambda grad, z, slope: _aten.leaky_relu_backward(grad, z, slope, False),
    (("negative_slope", 0.01),),
)
_ELU = Kind(F.elu_, _elu_back, (("alpha", 1.0),))
_HARDTANH = Kind(F.hardtanh_, _hardtanh_back, (("min_val", -1.0), ("max_val", 1.0)))
_RELU6 = Kind(lambda z: F.hardtanh_(z, 0.0, 6.0), lambda grad, z: _hardtanh_back(grad, z, 0.0, 6.0))
_SILU = Kind(_aten.silu_, lambda grad, z: _aten.silu_backward(grad, z))
_MISH = Kind(_aten.mish_, lambda grad, z: _aten.mish_backward(grad, z))
_SIGMOID = Kind(torch.sigmoid_, _sigmoid_back)
_TANH = Kind(torch.tanh_, _tanh_back)
_GELU = Kind(
    lambda z, approximate: F.gelu(z, approximate=approximate),
    lambda grad, z, approximate: _aten.gelu_backward(grad, z, approximate=approximate),
    (("approximate", "none"),),
)
_SOFTPLUS = Kind(
    F.softplus,
    lambda grad, z, beta, threshold: _aten.softplus_backward(grad, z, beta, threshold),
    (("beta", 1.0), ("threshold", 20.0)),
)
_SELU_KIND = Kind(torch.selu_, lambda grad, z: _elu_back(grad, z, *_SELU))
_CELU = Kind(F.celu_, lambda grad, z, alpha: _elu_back(grad, z, alpha, 1.0, 1.0 / alpha), (("alpha", 1.0),))
_HARDSWISH = Kind(lambda z: F.hardswish(z), lambda grad, z: _aten.hardswish_backward(grad, z))

# fmt: off
_KINDS: Mapping[Any, Kind] = {
    F.relu: _RELU, torch.relu: _RELU, torch.relu_: _RELU, Tensor.relu: _RELU, Tensor.relu_: _RELU,
    F.leaky_relu: _LEAKY, F.leaky_relu_: _LEAKY,
    F.elu: _ELU, F.elu_: _ELU, F.selu: _SELU_KIND, torch.selu: _SELU_KIND, torch.selu_: _SELU_KIND,
    F.celu: _CELU, torch.celu: _CELU, torch.celu_: _CELU,
    F.hardtanh: _HARDTANH, F.hardtanh_: _HARDTANH, F.relu6: _RELU6, F.hardswish: _HARDSWISH,
    F.silu: _SILU, F.mish: _MISH, F.gelu: _GELU, F.softplus: _SOFTPLUS,
    torch.sigmoid: _SIGMOID, torch.sigmoid_: _SIGMOID, Tensor.sigmoid: _SIGMOID, Tensor.sigmoid_: _SIGMOID,
    torch.tanh: _TANH, torch.tanh_: _TANH, Tensor.tanh: _TANH, Tensor.tanh_: _TANH,
}
NAMES = frozenset({func.__name__ for func in _KINDS} | {"prelu"})
"""Of all of them, as they are recorded."""
KEEP_RESULT = frozenset({"relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"})
"""Of those whose backward needs their result only, which the next operation keeps anyway."""
# fmt: on


@dataclass(frozen=True)
class Activation:
    """One activation with its options."""

    kind: Kind | None
    """None: PReLU, whose slopes are parameters."""
    options: tuple[Any, ...] = ()

    def apply_(self, z: Tensor, slope: Tensor | None) -> Tensor:
        """May write to its argument.

        Args:
            slope: of PReLU, shape (1,) or (C,).
        """
        if self.kind is None:
            assert slope is not None
            return _aten._prelu_kernel(z, _over_channels(slope, z))  # type: ignore[no-any-return]
        return self.kind.forward(z, *self.options)

    def backward(self, grad: Tensor, z: Tensor, slope: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Gradients of what it was given, and (of PReLU) of the slopes, (1,) or (C,).

        Args:
            grad: of its result.
            z: what it was given.
        """
        if self.kind is not None:
            return self.kind.backward(grad, z, *self.options), None
        assert slope is not None
        to_z, each = _aten._prelu_kernel_backward(grad, z, _over_channels(slope, z))
        summed = each.sum(tuple(d for d in range(z.dim()) if d != 1), dtype=torch.promote_types(z.dtype, torch.float32))
        return to_z, summed if slope.numel() > 1 else summed.sum().view(1)


def _over_channels(slope: Tensor, z: Tensor) -> Tensor:
    return slope.to(z.dtype).view(1, -1, *[1] * (z.dim() - 2))


def activation_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Activation, Any] | None:
    """The activation that a call is, and PReLU's slopes; None: it is none that is known here.

    Args:
        args: of the call; the first is what it is given, unless `kwargs` has that as `input`.
    """
    rest = list(args[1:]) if "input" not in kwargs else list(args)
    more = {name: value for name, value in kwargs.items() if name not in ("input", "inplace")}
    if func in (torch.prelu, Tensor.prelu):
        slope = rest[0] if rest else more.get("weight")
        return (Activation(None), slope) if isinstance(slope, Tensor) else None
    kind = _KINDS.get(func)
    if kind is None:
        return None
    options = []
    for name, default in kind.options:
        options.append(rest.pop(0) if rest else more.pop(name, default))
    if more or len(rest) > 1:  # one more may be `inplace`
        return None
    return Activation(kind, tuple(options)), None

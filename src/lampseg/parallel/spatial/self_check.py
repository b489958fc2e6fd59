"""The self-check: a small volume through the network whole and in slabs, before a long run relies on it."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_leaves

from lampseg.errors import UserError
from lampseg.parallel.randomness import seeded
from lampseg.parallel.spatial.checkpointed import recomputing
from lampseg.parallel.spatial.layout import layout_of
from lampseg.parallel.spatial.mode import SpatialParallel

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Relative to the largest number; float32 rounds at 1e-7, and gradients add up thousands of such errors."""


def check_slabs(
    network: nn.Module,
    spatial: SpatialParallel,
    *,
    channels: int,
    stride: Sequence[int],
    samples: int = 1,
    device: torch.device | None = None,
    recomputed: Sequence[str] = (),
) -> None:
    """Compares outputs and gradients of a small volume, computed whole and in slabs; called on every rank.

    The network is copied: its statistics and gradients stay as they are. Random functions are turned off, as they may
    draw other numbers on slabs.

    Args:
        channels: of the input.
        stride: the network's total down-sampling along each spatial dimension.
        recomputed: names of the modules that run again in the backward of slabs.

    Raises:
        UserError: they differ; the message names the module where they begin to, and what to do.
        NotExactError: the network calls a function that slabs do not know.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.eval()
    parameter = next(network.parameters())
    device = device or parameter.device
    ranks = {axis.dim - 2: axis.size for axis in spatial.axes}
    size = [2 * step * ranks.get(n, 1) for n, step in enumerate(stride)]
    with seeded(0, device):
        x = torch.randn(samples, channels, *size, dtype=parameter.dtype, device=device)
    tolerance = TOLERANCE.get(parameter.dtype, 5e-2)

    outputs: list[tuple[str, Tensor]] = []
    with _watched(network, lambda name, out: outputs.append((name, out.detach().clone()))):
        whole = _train(network, x)
    before = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    network.zero_grad(set_to_none=True)

    expected = iter(outputs)

    def compare(name: str, out: Tensor) -> None:
        if torch._C._current_autograd_node() is not None:
            return  # it runs again
        known, there = next(expected)
        here = spatial.unshard(out).detach()
        if name != known or here.shape != there.shape:
            raise UserError(f"{_refusal(network)}: after `{known}` it goes another way. {_REMEDY}")
        _compare(network, f"the output of `{name}`", here, there, tolerance)

    spatial.begin()
    with spatial, _watched(network, compare), recomputing(network, recomputed, spatial):
        parts = _train(network, spatial.shard(x), spatial=spatial)
    _compare(network, "the loss", parts, whole, tolerance)
    spatial.sum_gradients(network.parameters())
    largest = max((float(grad.abs().max()) for grad in before.values()), default=0.0)
    for name, parameter in network.named_parameters():
        if name in before:
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(before[name])
            _compare(network, f"the gradient of `{name}`", grad, before[name], tolerance, scale=largest)


_REMEDY = "Use `parallel.mode: pipeline`, and report the network"


def _refusal(network: nn.Module) -> str:
    return f"{type(network).__name__} is not the same on slabs as on the whole volume"


def _compare(
    network: nn.Module, what: str, here: Tensor, there: Tensor, tolerance: float, *, scale: float | None = None
) -> None:
    scale = float(there.abs().max()) if scale is None else scale
    off = float((here.detach() - there.detach()).abs().max()) / max(scale, 1e-30)
    if not off <= tolerance:
        raise UserError(f"{_refusal(network)}: {what} is off by {off:.1e} of its largest number. {_REMEDY}")


def _train(network: nn.Module, x: Tensor, *, spatial: SpatialParallel | None = None) -> Tensor:
    leaves = [leaf for leaf in tree_leaves(network(x)) if isinstance(leaf, Tensor)]
    # Not symmetric in space or channels, so that a plane in the wrong place is seen.
    loss = sum(
        (leaf.square().mean() + (leaf * leaf.sigmoid()).mean() for leaf in leaves),
        torch.zeros_like(leaves[0][:0].sum()),
    )
    if spatial is None:
        loss.backward()  # type: ignore[no-untyped-call]
    else:
        spatial.backward(loss)
    return loss.detach()


@contextmanager
def _watched(network: nn.Module, see: Any) -> Iterator[None]:
    """Shows the tensors that modules without parts return, in order."""
    handles = []
    for name, module in network.named_modules():
        if next(module.children(), None) is None:

            def after(_module: nn.Module, _args: Any, out: Any, name: str = name) -> None:
                with torch._C.DisableTorchFunction():
                    for leaf in tree_leaves(out):
                        if isinstance(leaf, Tensor) and (leaf.dim() > 2 or layout_of(leaf)):
                            see(name, leaf)

            handles.append(module.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

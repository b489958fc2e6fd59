"""Activation checkpointing on slabs: a module's forward runs again in the backward, with its messages and numbers."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from lampseg.errors import UserError
from lampseg.parallel.spatial.layout import is_constant, layout_of, mark, mark_constant
from lampseg.parallel.spatial.mode import SpatialParallel


def checkpointed(module: nn.Module, spatial: SpatialParallel) -> None:
    """Lets a module keep its inputs instead of its activations, from now on.

    The second run happens outside of the mode and, on CUDA, on another thread: it enters the mode itself, marks what
    it was given as it was marked, and draws random numbers as the first did. All ranks run it at the same time, as
    autograd takes the same order on each, so that its messages meet.
    """
    module.forward = _running_again(module, spatial)


@contextlib.contextmanager
def recomputing(network: nn.Module, names: Sequence[str], spatial: SpatialParallel) -> Iterator[None]:
    """Within, forward passes of the modules of these names keep inputs only; afterwards the network is as it was.

    Raises:
        UserError: a name is none of a module, or one of them is called by another.
    """
    modules = modules_of(network, names)
    before = [module.__dict__.get("forward") for module in modules]
    try:
        callers: list[str] = []
        for name, module in zip(names, modules):
            module.forward = _not_inside(_running_again(module, spatial), name, callers)
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


def modules_of(network: nn.Module, names: Sequence[str]) -> list[nn.Module]:
    """The modules of a plan's `choices.recomputed`.

    Raises:
        UserError: a name is none of a module, or of the whole network.
    """
    known = dict(network.named_modules())
    for name in names:
        if not name or name not in known:
            inner = [other for other in known if other and "." not in other]
            raise UserError(
                f"choices.recomputed names {name!r}, which is no module of {type(network).__name__}: it has "
                f"{', '.join(inner[:8])}{', ...' if len(inner) > 8 else ''} and what is in them"
            )
    return [known[name] for name in names]


def _not_inside(forward: Callable[..., Any], name: str, callers: list[str]) -> Callable[..., Any]:
    """By calls, not by names: a module may have several, or hold one that it does not call."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if callers:
            raise UserError(f"choices.recomputed names {callers[0]!r} and {name!r}, which runs inside it: give one")
        callers.append(name)
        try:
            return forward(*args, **kwargs)
        finally:
            callers.pop()

    return run


def _running_again(module: nn.Module, spatial: SpatialParallel) -> Callable[..., Any]:
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = tree_flatten((args, kwargs))
        marks = [(layout_of(leaf), is_constant(leaf)) if isinstance(leaf, Tensor) else ((), False) for leaf in leaves]
        moment = spatial.moment()
        runs = 0

        def inner(*given: Any) -> Any:
            nonlocal runs
            runs += 1
            if runs == 1:
                inside, keywords = tree_unflatten(given, tree)
                return forward(*inside, **keywords)
            for leaf, (layout, constant) in zip(given, marks, strict=True):
                if isinstance(leaf, Tensor):
                    mark(leaf, layout)
                    if constant:
                        mark_constant(leaf)
            inside, keywords = tree_unflatten(given, tree)
            with _counted_once(module), spatial.again(moment):
                # torch ends this run by an exception, once it has all that it needs
                return forward(*inside, **keywords)

        return checkpoint(inner, *leaves, use_reentrant=False, preserve_rng_state=False)

    return run


@contextlib.contextmanager
def _counted_once(module: nn.Module) -> Iterator[None]:
    """Puts buffers that were written, such as running statistics, back to what they were."""
    with torch.no_grad():
        before = [(buffer, buffer._version, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, version, content in before:
                if buffer._version != version:
                    buffer.copy_(content)

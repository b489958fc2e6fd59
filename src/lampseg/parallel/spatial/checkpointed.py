"""Activation checkpointing on slabs: a module's forward runs again in the backward, with its messages and numbers."""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from lampseg.parallel.spatial.layout import layout_of, mark
from lampseg.parallel.spatial.mode import SpatialParallel


def checkpointed(module: nn.Module, spatial: SpatialParallel) -> None:
    """Lets a module keep its inputs instead of its activations, from now on.

    The second run happens outside of the mode and, on CUDA, on another thread: it enters the mode itself, marks what
    it was given as it was marked, and draws random numbers as the first did. All ranks run it at the same time, as
    autograd takes the same order on each, so that its messages meet.
    """
    forward = module.forward

    def run(*args: Any, **kwargs: Any) -> Any:
        leaves, tree = tree_flatten((args, kwargs))
        layouts = [layout_of(leaf) if isinstance(leaf, Tensor) else () for leaf in leaves]
        calls, seed = spatial.calls, spatial.seed
        runs = 0

        def inner(*given: Any) -> Any:
            nonlocal runs
            runs += 1
            if runs == 1:
                inside, keywords = tree_unflatten(given, tree)
                return forward(*inside, **keywords)
            for leaf, layout in zip(given, layouts, strict=True):
                if isinstance(leaf, Tensor):
                    mark(leaf, layout)
            after, spatial.calls = spatial.calls, calls
            buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]  # running statistics count once
            inside, keywords = tree_unflatten(given, tree)
            try:  # torch ends the second run by an exception, once it has all that it needs
                with spatial.random(seed), contextlib.ExitStack() as stack:
                    if not spatial.entered:
                        stack.enter_context(spatial)
                    return forward(*inside, **keywords)
            finally:
                spatial.calls = after
                with torch.no_grad():
                    for buffer, before in buffers:
                        if not torch.equal(buffer, before):
                            buffer.copy_(before)

        return checkpoint(inner, *leaves, use_reentrant=False, preserve_rng_state=False)

    module.forward = run

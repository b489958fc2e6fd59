"""The peak of live tensor bytes of a network: as the dry run predicts it, and as it is."""

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lampseg.partition import Graph
from lampseg.recording.backward import emptied_gradients, run_backward
from lampseg.recording.live import LiveBytes


def predicted_peaks(graph: Graph) -> tuple[int, int]:
    """Bytes at the peak of the forward and of the backward: the most of saved(0..k) + extra(k)."""
    forward = backward = 0
    for k, op in enumerate(graph.operations):
        saved = sum(storage.nbytes for storage in graph.saved if any(saver <= k for saver in storage.savers))
        forward = max(forward, saved + op.forward_extra)
        if op.backward_kernels:
            backward = max(backward, saved + op.backward_extra)
    return forward, backward


def real_peaks(network: nn.Module, x: Tensor, *, autocast: torch.dtype | None = None) -> tuple[int, int]:
    """The same of a real forward and backward, beside parameters, buffers and accumulated gradients."""
    live = LiveBytes()
    for tensor in (*network.parameters(), *network.buffers()):
        live.add(tensor)
    state = live.current
    live.add(x)
    with live:
        with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
            outputs = tree_leaves(network(x))
        forward = live.peak
        del x
        live.reset_peak()
        with emptied_gradients([p for p in network.parameters() if p.requires_grad]):
            run_backward(outputs)
    return forward - state, live.peak - state

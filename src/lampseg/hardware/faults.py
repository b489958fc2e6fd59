"""A fault of PyTorch that makes gradients wrong without a word: what meets it is refused."""

from lampseg.errors import UserError
from lampseg.recording.graph import Graph

PLANES = 2


def refuse_faulty(graph: Graph, *, precision: str, device: str) -> None:
    """Raises UserError if the backward of a recorded network would be garbage on this device.

    In bfloat16 on a CPU with such instructions (torch 2.13, oneDNN), a 3D convolution of several taps over an input of
    two planes along its first spatial axis leaves parts of its weight's gradient as the memory was: any numbers.
    """
    if precision != "bfloat16" or device != "cpu":
        return
    for op in graph.operations:
        if op.name != "conv3d" or not op.reads or not any(kernel.taps > 1 for kernel in op.kernels):
            continue
        shape = graph.values[op.reads[0]].shape
        if shape[2] == PLANES:
            raise UserError(
                f"precision: bfloat16: on a CPU PyTorch computes wrong gradients of a convolution over two planes, as "
                f"`{op.module or 'the network'}` has them ({list(shape[2:])} voxels) for an input of "
                f"{list(graph.input.shape[2:])}; use precision: float32, or a size along x with more planes there"
            )

"""What a convolution library allocates beside the tensors while one call runs."""

from lampseg.hardware.rates import channels_of, unfolded_bytes
from lampseg.recording.kernel import Kernel

_BLOCK = 16
"""oneDNN keeps channels in blocks of so many numbers."""


def workspace_bytes(kernel: Kernel, *, cuda: bool, itemsize: int) -> float:
    """Bytes that are free again after the call.

    On a CPU these follow the two ways PyTorch takes (measured for torch 2.13, float32): the slow path unfolds the
    input; oneDNN copies its tensors into a layout with channels in blocks of 16. On CUDA it is an estimate: cuDNN
    copies the tensors of the call into the layout of the tensor cores.
    """
    if kernel.kind not in ("convolution", "transposed_convolution"):
        return 0.0
    if cuda:
        return float(kernel.nbytes)
    inputs, outputs = channels_of(kernel)
    if kernel.fallback:
        if kernel.taps > 1:
            return unfolded_bytes(kernel, itemsize=itemsize)
        return float(inputs * kernel.voxels * itemsize) if kernel.backward else 0.0
    small, large = _tensors(kernel, itemsize=itemsize)
    x, y = (small, large) if kernel.kind == "convolution" else (large, small)
    if kernel.backward:
        return max(_padded(y, outputs) + _padded(x, inputs) - x, _padded(y, outputs) + x)
    if kernel.kind == "transposed_convolution":
        return 2 * y
    return max(x + _padded(y, outputs), y + _padded(y, outputs)) - y


def _tensors(kernel: Kernel, *, itemsize: int) -> tuple[float, float]:
    """Bytes of the tensor whose voxels the kernel does not give, and of the one whose voxels it does.

    That is (input, output), of a transposed convolution (output, input); with groups the first is too large.
    """
    inputs, outputs = channels_of(kernel)
    weight = inputs * outputs * kernel.taps * itemsize
    given = float((outputs if kernel.kind == "convolution" else inputs) * kernel.voxels * itemsize)
    if not kernel.backward:
        return max(0.0, kernel.nbytes - given - weight), given
    if kernel.kind == "convolution":  # read: gradient of the output, input, weight; made: both gradients
        return max(0.0, kernel.nbytes - given - 2 * weight) / 2, given
    return max(0.0, kernel.nbytes - 2 * given - 2 * weight), given


def _padded(nbytes: float, channels: int) -> float:
    return nbytes * (-(-channels // _BLOCK) * _BLOCK) / channels

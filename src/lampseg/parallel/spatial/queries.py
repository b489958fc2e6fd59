"""Questions to a tensor, which return no tensor made from its elements; and functions with a special part."""

import torch
import torch.nn.functional as F
from torch import Tensor

_NAMES = (
    *(
        "shape",
        "dtype",
        "device",
        "ndim",
        "requires_grad",
        "is_leaf",
        "grad_fn",
        "layout",
        "is_cuda",
        "is_cpu",
        "names",
    ),
    *(
        "is_meta",
        "is_sparse",
        "is_quantized",
        "is_mkldnn",
        "is_mps",
        "is_xpu",
        "grad",
        "output_nr",
        "_version",
        "itemsize",
    ),
    *("nbytes", "is_nested", "is_vulkan", "is_ipu", "retains_grad", "is_mtia", "is_maia", "_backward_hooks", "_base"),
)
_METHODS = (
    *("size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "is_contiguous", "element_size"),
    *(
        "is_floating_point",
        "is_complex",
        "is_signed",
        "get_device",
        "data_ptr",
        "untyped_storage",
        "__len__",
        "__hash__",
    ),
    *(
        "register_hook",
        "retain_grad",
        "is_inference",
        "is_same_size",
        "dim_order",
        "is_shared",
        "is_pinned",
        "backward",
    ),
    *("register_post_accumulate_grad_hook", "_is_view", "is_conj", "is_neg", "has_names", "__repr__", "__format__"),
)


def _queries() -> frozenset[object]:
    found: set[object] = set()
    for name in _NAMES:
        descriptor = getattr(Tensor, name, None)
        getter = getattr(descriptor, "__get__", None)
        if getter is not None:
            found.add(getter)
        setter = getattr(descriptor, "__set__", None)
        if setter is not None:
            found.add(setter)
    for name in _METHODS:
        method = getattr(Tensor, name, None)
        if method is not None:
            found.add(method)
    found.update((torch.is_floating_point, torch.is_complex, torch.numel, torch.is_tensor))
    return frozenset(found)


QUERIES = _queries()

CONSTANTS = frozenset(
    {
        "zeros",
        "ones",
        "full",
        "empty",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
    }
)
"""Functions whose result is one number, everywhere; or will be written."""

KEEP_CONSTANT = frozenset(
    {
        Tensor.to,
        Tensor.type,
        Tensor.float,
        Tensor.double,
        Tensor.half,
        Tensor.bfloat16,
        Tensor.long,
        Tensor.int,
        Tensor.bool,
        Tensor.contiguous,
        Tensor.clone,
        torch.clone,
    }
)

UPSAMPLING = frozenset({F.interpolate, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d})

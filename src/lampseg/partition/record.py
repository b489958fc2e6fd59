"""The dry run: a network's forward pass on fake tensors, its operations numbered in call order and costed.

Nothing is allocated and no device is needed; the network is not changed, and neither are its buffers.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_leaves

from lampseg.errors import UserError
from lampseg.partition.custom_functions import visible_functions
from lampseg.partition.graph import Graph
from lampseg.partition.recorder import Recorder, Refused

_TABLES = ("_parameters", "_buffers", "_modules")


def record(
    network: nn.Module,
    *,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
) -> Graph:
    """Records the forward pass of `network` (in its present train or eval mode) on one input.

    Args:
        network: any module that takes one tensor; its parameters may be real or on the meta device.
        shape: of the input, (N, C, *spatial).
        dtype: of the input.
        device: where the network would run; it need not exist here.
        autocast: the dtype of mixed precision, None without.

    Raises:
        UserError: the network does something that depends on the data, or that can't be split; the message
            names the line of the network.
    """
    device = torch.device(device)
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    recorder = Recorder(network, fake_mode=fake_mode, device=device)
    context = torch.autocast(device.type, dtype=autocast, enabled=autocast is not None)
    with fake_mode:
        x = torch.empty(shape, dtype=dtype, device=device)
    recorder.begin(x)
    try:
        with (
            _restored(network),
            torch.enable_grad(),
            recorder.saved_tensors(),
            _module_names(network, recorder.modules),
            context,
            visible_functions(),
            fake_mode,
            recorder.kernels,
            recorder,
        ):
            output = network(x)
        leaves, spec = tree_flatten(output)
        return recorder.finish(leaves, spec)
    except Refused as error:
        raise UserError(f"{type(network).__name__} can't be split: {error} (at {_network_line(error)})") from error
    except UserError:
        raise
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError) as error:
        raise UserError(
            f"{type(network).__name__} can't be recorded for an input of shape {tuple(shape)}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__} "
            f"(at {_network_line(error)}). A network that is split must run on any data of a shape in the same "
            "way: if the shape itself is at fault choose another; otherwise avoid decisions that read the values "
            "of tensors"
        ) from error


def _network_line(error: BaseException) -> str:
    """The innermost line outside torch and lampseg's own recording: where the network made the call."""
    own = ("/torch/", "/lampseg/partition/", "/lampseg/parallel/")
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not any(part in f.filename.replace("\\", "/") for part in own)]
    if not outside:
        return f"{type(error).__name__} at an unknown line"
    return f"{outside[-1].filename}:{outside[-1].lineno}, `{outside[-1].line}`"


@contextmanager
def _module_names(network: nn.Module, stack: list[str]) -> Iterator[None]:
    """Keeps `stack` the names of the modules whose forward is running."""
    handles = []
    for name, module in network.named_modules():

        def enter(_module: nn.Module, _args: Any, name: str = name) -> None:
            stack.append(name)

        def leave(_module: nn.Module, _args: Any, _out: Any) -> None:
            stack.pop()

        handles += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Puts every attribute of every module back as it was.

    Raises:
        Refused: afterwards, if a module kept a tensor of the pass: the stages that did not compute it would lack it.
    """
    before = {}
    for name, module in network.named_modules():
        tables = {table: dict(module.__dict__[table]) for table in _TABLES}
        before[name] = (module, dict(module.__dict__), tables)
    kept: list[str] = []
    try:
        yield
    finally:
        for name, (module, attributes, tables) in before.items():
            for table in _TABLES:
                now = module.__dict__[table]
                kept += [f"{name}.{key}".lstrip(".") for key, value in now.items() if isinstance(value, FakeTensor)]
                now.clear()
                now.update(tables[table])
            for key, value in module.__dict__.items():
                if key not in _TABLES and any(isinstance(leaf, FakeTensor) for leaf in tree_leaves(value)):
                    kept.append(f"{name}.{key}".lstrip("."))
            module.__dict__.clear()
            module.__dict__.update(attributes)
    if kept:
        raise Refused(
            f"its forward pass keeps the tensor `{kept[0]}` for later. Compute it anew in every pass, or register it "
            "as a buffer and update it in place"
        )

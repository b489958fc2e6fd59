"""The dry run: a network's forward pass on fake tensors, its operations numbered in call order and costed.

Nothing is allocated and no device is needed; the network is not changed, and neither are its buffers.
"""

import logging
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
)
from torch.utils._pytree import tree_flatten, tree_leaves

from lampseg.errors import UserError
from lampseg.recording.around import Around
from lampseg.recording.backward import SecondPass, emptied_gradients, run_backward
from lampseg.recording.custom_functions import visible_functions
from lampseg.recording.fake_mode import DryMode
from lampseg.recording.graph import Graph
from lampseg.recording.recorder import Recorder, Refused


def record(
    network: nn.Module,
    *,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    autocast: torch.dtype | None = None,
    gradients: bool = True,
    backward: bool = False,
    around: Around | None = None,
) -> Graph:
    """Records the forward pass of `network` (in its present train or eval mode) on one input.

    Args:
        network: any module that takes one tensor; its parameters may be real or on the meta device.
        shape: of the input, (N, C, *spatial).
        dtype: of the input.
        device: where the network would run. If there is no CUDA here, cuda is recorded as cpu: the operations, the
            values and what autograd keeps are the same.
        autocast: the dtype of mixed precision, None without.
        gradients: whether autograd is on.
        backward: records the backward of every operation as well, and the memory alive in its forward and backward
            (`lampseg.recording.backward` has the definitions), in about three times the time.
        around: a mode in which the network runs on a part of the input; the shapes recorded are those of the part.

    Raises:
        UserError: the network does something that depends on the data, or that can't be split; the message
            names the line of the network.
    """
    device = torch.device(device)
    if device.type == "cuda" and not torch.cuda.is_available():
        device = torch.device("cpu")  # autograd would abort the process
    try:
        _refuse_compiled(network)
        with restored(network) as kept, _quiet():
            how = _How(shape if around is None else around.local(shape), dtype, device, autocast, gradients, around)
            graph, recorder = _record_once(network, how)
            # A tensor that the network keeps is harmless if the next pass overwrites it, as DynUNet's heads are.
            if names := kept():
                again, _ = _record_once(network, how)
                if again.digest != graph.digest:
                    raise Refused(
                        f"its forward pass keeps `{names[0]}` for later passes: compute it anew in every pass, or "
                        "register it as a buffer and update it in place"
                    )
            if backward:
                graph = _record_backward(network, how, graph, recorder)
        return graph
    except Refused as error:
        raise UserError(f"{type(network).__name__} can't be split: {error}{_network_line(error)}") from error
    except UserError:
        raise
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise UserError(
            f"{type(network).__name__} can't be split: what it does next depends on the values of tensors"
            f"{_network_line(error)}. It must do the same for all data of one shape: use `torch.where` or multiply by "
            "a mask instead of a decision, a number or a selection"
        ) from error
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError) as error:
        raise UserError(
            f"{type(network).__name__} can't be recorded for an input of shape {tuple(shape)}: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
            f"{_network_line(error)}. Choose another shape, or correct the network: it must run on fake tensors, "
            "which have a shape and no values"
        ) from error


@dataclass(frozen=True)
class _How:
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    autocast: torch.dtype | None
    gradients: bool
    around: Around | None

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with (
            torch.set_grad_enabled(self.gradients),
            torch.autocast(self.device.type, dtype=self.autocast, enabled=self.autocast is not None),
            visible_functions(),
            nullcontext() if self.around is None else self.around.mode(),
        ):
            yield

    def input(self) -> Tensor:
        x = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        return x if self.around is None else self.around.begin(x)


def _record_once(network: nn.Module, how: _How) -> tuple[Graph, Recorder]:
    fake_mode = DryMode()
    recorder = Recorder(network, fake_mode=fake_mode, device=how.device, around=how.around)
    with fake_mode:
        x = how.input()
    recorder.begin(x)
    with (
        how(),
        recorder.saved_tensors(),
        _module_names(network, recorder.modules),
        fake_mode,
        recorder.kernels,
        recorder,
    ):
        output = network(x)
    leaves, spec = tree_flatten(output)
    return recorder.finish(leaves, spec), recorder


def _record_backward(network: nn.Module, how: _How, graph: Graph, recorder: Recorder) -> Graph:
    second = SecondPass(graph, recorder)
    with recorder.fake_mode:
        x = how.input()
        second.live.add(x)
        with how(), second.forward_kernels, second.forward_mode:
            outputs = tree_leaves(network(x))
        second.forward_done()
        del x
        with second.backward_kernels, emptied_gradients(recorder.parameters):
            run_backward(outputs)
    return second.finish()


def _refuse_compiled(network: nn.Module) -> None:
    for name, module in network.named_modules():
        where = f"its module `{name}`" if name else "it"
        if isinstance(module, torch.jit.ScriptModule):
            raise Refused(f"{where} is TorchScript, which runs out of torch's sight: use the Python module instead")
        if hasattr(module, "_orig_mod"):
            raise Refused(f"{where} is compiled by `torch.compile`, which hides its calls: remove that call")


@contextmanager
def _quiet() -> Iterator[None]:
    """Fake tensors log a traceback for every shape that does not fit; the user is told in one sentence."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _network_line(error: BaseException) -> str:
    """Where the network made the call: the innermost line outside torch and lampseg's own recording, if any."""
    own = ("/torch/", "/lampseg/recording/", "/lampseg/partition/", "/lampseg/parallel/", "/contextlib.py")
    frames = list(traceback.extract_tb(error.__traceback__))
    # The function that is checkpointed belongs to the network, too, but the fault is the call of checkpoint.
    checkpoint = next((n for n, f in enumerate(frames) if f.filename.endswith("torch/utils/checkpoint.py")), None)
    frames = frames[:checkpoint]
    outside = [f for f in frames if not any(part in f.filename.replace("\\", "/") for part in own)]
    if not outside:
        return ""
    return f" (at {outside[-1].filename}:{outside[-1].lineno}, `{outside[-1].line}`)"


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
def restored(network: nn.Module) -> Iterator[Callable[[], list[str]]]:
    """Puts every attribute of every module back as it was.

    Yields a function that names the attributes in which modules keep tensors of a recorded pass.
    """
    before = [
        (name, module, {key: (value, _content(value)) for key, value in module.__dict__.items()})
        for name, module in network.named_modules()
    ]

    def kept() -> list[str]:
        return [
            f"{name}.{key}".lstrip(".")
            for name, module, _ in before
            for key, value in module.__dict__.items()
            if any(isinstance(leaf, FakeTensor) for leaf in tree_leaves(value))
        ]

    try:
        yield kept
    finally:
        for _, module, attributes in before:
            module.__dict__.clear()
            for key, (value, content) in attributes.items():
                module.__dict__[key] = value
                if isinstance(value, list):
                    value[:] = content
                elif isinstance(value, dict):
                    value.clear()
                    value.update(content)


def _content(value: Any) -> Any:
    return value.copy() if isinstance(value, list | dict) else None

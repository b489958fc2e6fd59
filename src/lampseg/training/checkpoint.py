"""Checkpoints: written atomically, with the plain names of the unsplit network, loadable into any split.

    checkpoints/step-00000100/   network.safetensors, optimizer.safetensors, state.json: to continue from
    checkpoints/stage-1.safetensors   the weights at the end of the first curriculum stage
    checkpoints/stage-1-best.safetensors   the weights of the best validation within the first curriculum stage
    checkpoints/best.safetensors      the weights of the best validation

A network file loads into the bare network: `network.load_state_dict(safetensors.torch.load_file(path))`.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lampseg.errors import UserError

KEPT = 2
"""How many `step-*` checkpoints remain; the one before the last is there should the last be damaged."""


def with_all_names(network: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `network.state_dict()` would hold, from tensors that are named once each.

    A module that is registered twice appears under both names, as `load_state_dict` expects.
    """
    names = {id(tensor): name for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    state = network.state_dict(keep_vars=True)
    return {key: tensors[names[id(tensor)]].clone() for key, tensor in state.items() if isinstance(tensor, Tensor)}


def save_weights(path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, str] | None = None) -> None:
    """Writes a safetensors file and renames it into place.

    Raises:
        UserError: the disk is full or the folder can't be written.
    """
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, draft, metadata=metadata)
        draft.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error}); free space, then continue with --resume") from error


def save_checkpoint(
    folder: Path, *, step: int, network: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any]
) -> Path:
    """Writes `folder/step-<step>` in a draft folder, renames it, and removes older ones beyond `KEPT`."""
    final = folder / f"step-{step:08d}"
    draft = folder / f".{final.name}.tmp"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        save_weights(draft / "network.safetensors", network)
        save_weights(draft / "optimizer.safetensors", optimizer)
        (draft / "state.json").write_text(json.dumps({"step": step, **state}, indent=1))
        if final.exists():
            shutil.rmtree(final)
        os.rename(draft, final)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise UserError(f"{final}: cannot be written ({error}); free space, then continue with --resume") from error
    except UserError:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    for old in step_checkpoints(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def step_checkpoints(folder: Path) -> list[Path]:
    """The complete `step-*` checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / "state.json").is_file())


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Network, optimizer and state of a `step-*` folder.

    Raises:
        UserError: a file is missing or damaged.
    """
    remedy = "remove this folder; --resume then continues from the one before, or from the beginning"
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if not isinstance(state, dict) or not isinstance(state.get("step"), int) or "best" not in state:
            raise ValueError("state.json lacks `step` or `best`")
        network = load_weights(path / "network.safetensors")
        optimizer = load_weights(path / "optimizer.safetensors")
        if foreign := {key.partition(":")[2] for key in optimizer} - network.keys():
            raise ValueError(f"optimizer.safetensors holds numbers for {_some(sorted(foreign))}, the network does not")
        return network, optimizer, state
    except (OSError, ValueError) as error:  # a UserError of `load_weights` is one
        raise UserError(f"{path}: not a complete checkpoint ({error}); {remedy}") from error


def load_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU."""
    try:
        tensors: dict[str, Tensor] = load_file(path)
        return tensors
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{path}: cannot be read as network weights in safetensors format ({error}); copy it again or choose "
            "another checkpoint"
        ) from error


def check_fits(network: nn.Module, tensors: dict[str, Tensor], *, source: str) -> None:
    """Raises UserError unless the tensors are those of this network, by name and shape."""
    expected = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    given = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    faults = [
        *(f"`{key}` is missing" for key in expected.keys() - given.keys()),
        *(f"`{key}` is unknown" for key in given.keys() - expected.keys()),
        *(
            f"`{key}` is {list(given[key])}, not {list(expected[key])}"
            for key in expected.keys() & given.keys()
            if expected[key] != given[key]
        ),
    ]
    if faults:
        raise UserError(
            f"{source} holds another network: {_some(sorted(faults))}. Use the `network:` section it was made with"
        )


def by_first_name(network: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `with_all_names`: each tensor once, under the name that `named_parameters` gives it."""
    names = {name for name, _ in (*network.named_parameters(), *network.named_buffers())}
    return {key: tensor for key, tensor in tensors.items() if key in names}


def _some(items: Iterable[str], count: int = 3) -> str:
    items = list(items)
    return "; ".join(items[:count]) + (f" and {len(items) - count} more" if len(items) > count else "")


def optimizer_state(optimizer: torch.optim.Optimizer, names: dict[int, str]) -> dict[str, Tensor]:
    """The optimizer's numbers for my parameters, as `<number>:<parameter name>`."""
    return {
        f"{number}:{names[id(parameter)]}": torch.as_tensor(value)
        for parameter, numbers in optimizer.state.items()
        for number, value in numbers.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, parameters: dict[str, nn.Parameter], tensors: dict[str, Tensor]
) -> None:
    """Puts back what `optimizer_state` gave, for the parameters that are mine."""
    for key, value in tensors.items():
        number, name = key.split(":", 1)
        parameter = parameters[name]
        # The step count stays on the CPU, where the optimizer reads it without waiting for the device.
        optimizer.state[parameter][number] = value if number == "step" else value.to(parameter.device)

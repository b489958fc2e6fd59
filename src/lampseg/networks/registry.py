"""Builds a network by name (the paper's two, or any importable class) and finds any network's total stride."""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lampseg.config import NetworkConfig
from lampseg.errors import UserError
from lampseg.networks.blocks import UShape
from lampseg.networks.seunet import SEUNet
from lampseg.networks.unet import UNet

NETWORKS: Mapping[str, type[nn.Module]] = {"unet": UNet, "seunet": SEUNet}
OPTIONS = ("filters", "norm", "depth", "stem_stride")

# What common libraries call the number of input and output channels.
INPUT_NAMES = ("in_channels", "input_channels", "in_chns", "in_channel", "in_chans", "n_channels", "in_ch")
OUTPUT_NAMES = ("out_channels", "num_classes", "n_classes", "out_chns", "out_channel", "out_chans", "out_ch")

MAX_STRIDE = 64
PROBE_SIZE = 96
"""Smallest size per axis in voxels that is tried: five halvings still leave three voxels."""


def build_network(config: NetworkConfig, *, in_channels: int, out_channels: int) -> nn.Module:
    """The network that `network:` in the configuration names.

    `unet` and `seunet` take the options `filters`, `norm`, `depth` and `stem_stride`. Any other name is the path
    of an importable `torch.nn.Module` class, such as `monai.networks.nets.DynUNet`, built with `kwargs`. The
    numbers of channels are filled in under the names that the class uses (`in_channels`, `input_channels`,
    `num_classes`, ...), and `spatial_dims=3` where it is required and not given. A string in `kwargs` that begins
    with `torch.nn.` or the name of the network's own package becomes the class of that name, which YAML cannot express
    (nnU-Net's `conv_op` and `block`).

    Args:
        config: the `network` section.
        in_channels: channels of the images.
        out_channels: classes, background included.

    Raises:
        UserError: unknown name, class that cannot be imported or is no Module, options that it does not have,
            channels in `kwargs` that contradict the data, or arguments that its constructor refuses (quoted).
    """
    options = {name: getattr(config, name) for name in OPTIONS if getattr(config, name) is not None}
    if config.name in NETWORKS:
        twice = sorted(options.keys() & config.kwargs.keys())
        if twice:
            raise UserError(f"network: `{twice[0]}` is given twice, as a field and in `kwargs`; keep one")
        network_class = NETWORKS[config.name]
    else:
        network_class = _import_class(config.name)
        if options:
            raise UserError(
                f"network: `{next(iter(options))}` is an option of {_listing(NETWORKS)} only; "
                f"give {config.name} its arguments in `kwargs`"
            )
    kwargs = {**options, **{name: _class_named(value, config.name) for name, value in config.kwargs.items()}}
    parameters = inspect.signature(network_class).parameters
    _fill_in(kwargs, parameters, INPUT_NAMES, in_channels, "images have", "channels", config.name)
    _fill_in(kwargs, parameters, OUTPUT_NAMES, out_channels, "data have", "classes", config.name)
    dims = parameters.get("spatial_dims")
    if dims is not None and dims.default is inspect.Parameter.empty:
        kwargs.setdefault("spatial_dims", 3)
    try:
        return network_class(**kwargs)
    except (TypeError, ValueError, LookupError, AttributeError, AssertionError, RuntimeError) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in kwargs.items())
        raise UserError(
            f"network: {config.name}({given}) cannot be built: {error}; correct `network.kwargs`"
        ) from error


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """The network that `build` makes, on the meta device, where it takes no memory; if that can't be, on the CPU.

    Some constructors read the values of a tensor (SwinUNETR: how often to drop which path), which meta tensors lack.

    Raises:
        UserError: from `build`.
    """
    try:
        with torch.device("meta"):
            return build()
    except UserError:
        return build()


def network_sizes(
    network: nn.Module, *, in_channels: int, patches: Iterable[Sequence[int]]
) -> tuple[tuple[int, int, int], tuple[int, int, int] | None]:
    """Which volumes a network takes: its total stride; and its one size, if it takes no other, which is the stride too.

    Args:
        network: see `network_stride`.
        in_channels: channels of the images.
        patches: sizes to try, (X, Y, Z), if the network has no stride. A UNETR is built for one `img_size`.

    Raises:
        UserError: it has no stride and takes none of the patches.
    """
    try:
        return network_stride(network, in_channels=in_channels), None
    except UserError:
        with _StrideProbe(network, in_channels) as probe:
            for x, y, z in patches:
                if probe.keeps([x, y, z]):
                    return (x, y, z), (x, y, z)
        raise


def network_stride(network: nn.Module, *, in_channels: int) -> tuple[int, int, int]:
    """Per axis, the number of voxels that a volume's size must be a multiple of.

    Known for the paper's networks. For others it is found by running the network on meta tensors (shapes only:
    no memory, no arithmetic): the smallest power of two, up to 64, such that odd multiples of it come out with
    the size that they went in with; then the same for each axis alone. A network that pads inside has stride 1.

    Args:
        network: maps (N, in_channels, D, H, W) to (N, classes, D, H, W), or to a sequence that starts with it.
        in_channels: channels of the images.

    Raises:
        UserError: no stride up to 64 works; quotes what the network said to the largest.
    """
    if isinstance(network, UShape) and len(network.stride) == 3:
        return network.stride[0], network.stride[1], network.stride[2]
    candidates = [2**k for k in range(MAX_STRIDE.bit_length())]
    probe = _StrideProbe(network, in_channels)
    with probe:
        common = next((c for c in candidates if probe.fits((c, c, c))), None)
        if common is None:
            raise UserError(
                f"network: {type(network).__name__} keeps the size of no volume whose sizes are odd multiples of "
                f"1, 2, ..., {MAX_STRIDE}, so whole volumes of any size cannot be given to it; it said: {probe.fault}. "
                "If it takes one size only, give that to every curriculum stage as its patch"
            )
        stride = [common, common, common]
        for axis in range(3):
            for smaller in candidates:
                trial = [*stride[:axis], smaller, *stride[axis + 1 :]]
                if smaller == common or probe.fits(tuple(trial)):
                    stride = trial
                    break
    return stride[0], stride[1], stride[2]


class _StrideProbe:
    """Runs a network in evaluation mode on meta tensors; leaves its parameters and modes as they were."""

    def __init__(self, network: nn.Module, in_channels: int) -> None:
        self.network = network
        self.in_channels = in_channels
        self.fault = ""
        self.modes: list[tuple[nn.Module, bool]] = []

    def __enter__(self) -> "_StrideProbe":
        self.modes = [(module, module.training) for module in self.network.modules()]
        self.network.eval()
        # Each module once, whatever it is called: a module registered twice would not be put back.
        self.state = {
            f"{path}.{name}" if path else name: torch.empty_like(tensor, device="meta")
            for path, module in self.network.named_modules()
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        }
        floating = [t.dtype for t in self.state.values() if t.is_floating_point()]
        self.dtype = floating[0] if floating else torch.float32
        return self

    def __exit__(self, *_: object) -> None:
        for module, training in self.modes:
            module.training = training

    def fits(self, stride: tuple[int, ...]) -> bool:
        """Whether the network keeps the size of volumes whose sizes are odd multiples of `stride`."""
        return all(self.keeps([_odd_multiple(s, extra) for s in stride]) for extra in (0, 2))

    def keeps(self, size: list[int]) -> bool:
        """Whether a volume of this size, in voxels, comes out as large."""
        try:
            with torch.device("meta"), torch.no_grad():
                image = torch.empty(1, self.in_channels, *size, dtype=self.dtype)
                output = torch.func.functional_call(self.network, self.state, (image,), tie_weights=False)
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
            self.fault = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            return False
        first = next(iter(output.values())) if isinstance(output, dict) else output
        first = first[0] if isinstance(first, list | tuple) else first
        if list(first.shape[2:]) == size:
            return True
        self.fault = f"an input of size {tuple(size)} came out with shape {tuple(first.shape)}"
        return False


def _odd_multiple(stride: int, extra: int) -> int:
    """An odd multiple of `stride` not below the probe size, so that it is a multiple of no larger power of two."""
    return stride * (-(-PROBE_SIZE // stride) // 2 * 2 + 1 + extra)


def _import_class(name: str) -> type[nn.Module]:
    module_name, _, class_name = name.rpartition(".")
    if not module_name:
        near = difflib.get_close_matches(name.lower(), NETWORKS, n=1, cutoff=0.4)
        hint = f"did you mean `{near[0]}`? Otherwise" if near else f"it is neither of {_listing(NETWORKS)};"
        raise UserError(
            f"network.name: `{name}` is unknown; {hint} give the full path of a class, "
            "such as `monai.networks.nets.DynUNet`"
        )
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError, TypeError, SyntaxError, LookupError, AttributeError, NameError, OSError) as error:
        raise UserError(
            f"network.name: `{name}` cannot be imported ({type(error).__name__}: {error}); "
            "check the spelling and that the package is installed or its folder is on PYTHONPATH"
        ) from error
    found = getattr(module, class_name, None)
    if isinstance(found, type) and issubclass(found, nn.Module):
        return found
    if found is not None:
        raise UserError(f"network.name: `{name}` is a {type(found).__name__}, not a torch.nn.Module class")
    near = difflib.get_close_matches(class_name, _module_classes(vars(module)), n=1)
    hint = f"; did you mean `{module_name}.{near[0]}`?" if near else "; check the spelling"
    raise UserError(f"network.name: `{module_name}` has no class `{class_name}`{hint}")


def _module_classes(names: Mapping[str, Any]) -> list[str]:
    return [name for name, v in names.items() if isinstance(v, type) and issubclass(v, nn.Module)]


def _fill_in(
    kwargs: dict[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    names: tuple[str, ...],
    count: int,
    whose: str,
    what: str,
    network: str,
) -> None:
    """Sets the number of channels under the name that the signature uses, or checks the one given."""
    name = next((n for n in names if n in parameters or n in kwargs), None)
    if name is None:
        return
    given = kwargs.setdefault(name, count)
    if given != count:
        raise UserError(
            f"network.kwargs.{name}: {network} is given {given!r}, but the {whose} {count} {what}; "
            f"leave `{name}` out, it is filled in"
        )


def _class_named(value: Any, network: str) -> Any:
    """The class that a string names in torch.nn or in the network's own package; any other value as it is."""
    packages = ("torch.nn", network.partition(".")[0])
    package = next((p for p in packages if isinstance(value, str) and value.startswith(f"{p}.")), None)
    if package is None:
        return value
    module_name, _, name = value.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name, None)
    except ImportError:
        found = None
    if not isinstance(found, type):
        raise UserError(f"network.kwargs: `{value}` is not a class in {package}; check the spelling")
    return found


def _listing(names: Iterable[str]) -> str:
    return " and ".join(f"`{name}`" for name in names)

"""The configuration: one YAML file, typed and frozen, with dotted overrides; unknown fields are refused by name."""

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from lampseg.errors import UserError

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Patch = PositiveInt | tuple[PositiveInt, PositiveInt, PositiveInt] | Literal["whole"]


class Section(BaseModel):
    """One block of the YAML file: frozen, and no field that is not declared."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class NetworkConfig(Section):
    """Which network: `unet`, `seunet` or an importable class. Unset options keep the network's own defaults."""

    name: str = "unet"
    filters: PositiveInt | None = None
    norm: Literal["batch", "instance", "group"] | None = None
    depth: PositiveInt | None = None
    stem_stride: Literal[1, 2] | None = None
    kwargs: dict[str, Any] = {}


class DataConfig(Section):
    """Where the cases are and how a volume becomes the network's input."""

    root: Path
    format: Literal["auto", "msd"] = "auto"
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Spacing in mm that volumes are resampled to, in RAS axis order; None keeps each volume's own."""
    window: tuple[float, float] | None = None
    """Intensities clipped to this range and mapped linearly to [0, 1]; None: zero mean, unit deviation."""
    validation: Fraction = 0.2
    """Fraction of the training cases held out (by seed) to select the best model; 0 selects by the last step."""
    cache: Path | None = None
    """Where preprocessed volumes are kept; None: inside the run folder."""

    @field_validator("window")
    @classmethod
    def _window_rises(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and not value[0] < value[1]:
            raise ValueError(f"the window's lower end {value[0]} is not below its upper end {value[1]}")
        return value


class SamplingConfig(Section):
    """How training patches are drawn."""

    positive: Fraction = 1.0
    """Fraction of patches centred on a foreground voxel (the paper samples positive patches)."""
    class_balanced: bool = True
    """Choose the class of the centre first, so that small organs are seen as often as large ones."""


class StageConfig(Section):
    """One stage of the curriculum (Section 2.3 of the paper)."""

    patch: Patch
    batch: PositiveInt = 1
    epochs: PositiveInt | None = None
    steps: PositiveInt | None = None
    lr: PositiveFloat = 1e-3
    micro_batches: PositiveInt | None = None
    """Overrides `parallel.micro_batches` for this stage."""

    @model_validator(mode="after")
    def _one_length(self) -> "StageConfig":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either `epochs` or `steps`")
        return self

    @property
    def whole(self) -> bool:
        return self.patch == "whole"

    @property
    def size(self) -> tuple[int, int, int] | None:
        """The patch in voxels, None for whole volumes."""
        if isinstance(self.patch, str):
            return None
        return (self.patch, self.patch, self.patch) if isinstance(self.patch, int) else self.patch


class LossConfig(Section):
    """AnatomyNet's hybrid loss: soft Dice + `focal` x focal(gamma), weighted by class."""

    focal: Annotated[float, Field(ge=0)] = 0.5
    gamma: Annotated[float, Field(ge=0)] = 2.0
    class_weights: Literal["auto", "equal"] | tuple[PositiveFloat, ...] = "auto"
    """`auto`: from the training set's voxel frequencies; or one weight per class, background first."""


class OptimizerConfig(Section):
    """RMSprop, as in the paper; `kwargs` go to torch.optim.RMSprop (alpha, eps, momentum, weight_decay)."""

    name: Literal["rmsprop"] = "rmsprop"
    kwargs: dict[str, Any] = {}


class ParallelConfig(Section):
    """On what the network runs, and how it is split."""

    devices: int | str | None = None
    """`2`, or `2x16GiB` to state each device's memory; None: every visible GPU, else one CPU process."""
    mode: Literal["auto", "pipeline"] = "auto"
    schedule: Literal["gpipe", "1f1b"] = "1f1b"
    micro_batches: PositiveInt | Literal["auto"] = "auto"
    """How many micro-batches a mini-batch is cut into; auto: min(batch, 8), the same for any device count."""
    recompute: Literal["none", "all_but_last", "all"] = "none"
    timeout: PositiveFloat = 1800.0
    """Seconds after which a rank that waits for a silent peer gives up."""


class ValidationConfig(Section):
    """When the validation split is segmented (whole volumes) and the best model chosen."""

    every_steps: PositiveInt | None = None
    """Besides the end of every curriculum stage."""


class CheckpointConfig(Section):
    """When the state is saved, so that `--resume` can continue at the exact step."""

    every_steps: PositiveInt = 100


class Config(Section):
    """Everything a run depends on."""

    network: NetworkConfig = NetworkConfig()
    data: DataConfig
    curriculum: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    sampling: SamplingConfig = SamplingConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    seed: Annotated[int, Field(ge=0)] = 0


def load_config(path: Path, *, overrides: dict[str, str] | None = None) -> Config:
    """Reads a YAML file and applies dotted overrides, e.g. `{"network.filters": "64"}` (values are YAML).

    Relative paths in the file are relative to the current folder, as on the command line.

    Raises:
        UserError: the file is missing or not YAML, a field is unknown or has a bad value.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected fields such as `network:` and `data:`, found {type(tree).__name__}")
    for field, text in (overrides or {}).items():
        _override(tree, field, text)
    return parse_config(tree, source=str(path))


def parse_config(tree: dict[str, Any], *, source: str = "config") -> Config:
    """Builds a `Config` from plain values; `source` names the file in errors.

    Raises:
        UserError: naming every faulty field, what is wrong with it and, for a misspelt one, the nearest name.
    """
    try:
        return Config.model_validate(_float_exponents(tree))
    except ValidationError as error:
        raise UserError(f"{source}: " + "; ".join(_explain(e) for e in error.errors())) from error


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, defaults written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _override(tree: dict[str, Any], field: str, text: str) -> None:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{field}: {text!r} is not a valid value: {error}") from error
    *parents, last = field.split(".")
    node: Any = tree
    for key in parents:
        child = node[int(key)] if isinstance(node, list) and _index(key, node, field) else node.get(key)
        if child is None:
            child = node[key] = {}
        if not isinstance(child, dict | list):
            raise UserError(f"{field}: `{key}` holds a plain value, it has no field `{last}`")
        node = child
    if isinstance(node, list):
        _index(last, node, field)
        node[int(last)] = value
    else:
        node[last] = value


def _index(key: str, items: list[Any], field: str) -> bool:
    if not key.isdigit() or int(key) >= len(items):
        raise UserError(f"{field}: `{key}` is not one of the entries 0 to {len(items) - 1}")
    return True


def _float_exponents(value: Any) -> Any:
    """YAML 1.1 reads `1e-3` (no dot) as a string; give it the number that was meant."""
    if isinstance(value, dict):
        return {k: _float_exponents(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_float_exponents(v) for v in value]
    if isinstance(value, str) and value[:1].isdigit() and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _explain(error: Any) -> str:
    loc = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        fields = _fields_at(loc[:-1])
        near = difflib.get_close_matches(loc[-1], fields, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"the fields here are {', '.join(fields)}"
        return f"unknown field `{'.'.join(loc)}`: {hint}"
    if error["type"] == "missing":
        return f"`{'.'.join(loc)}` is missing"
    return f"`{'.'.join(loc)}`: {error['msg'].removeprefix('Value error, ')} (given: {error['input']!r})"


def _fields_at(loc: list[str]) -> list[str]:
    model: type[BaseModel] = Config
    for part in loc:
        if part.isdigit():
            continue
        annotation = model.model_fields[part].annotation
        if part == "curriculum":
            model = StageConfig
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)

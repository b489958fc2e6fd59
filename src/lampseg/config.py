"""The configuration: one YAML file, typed and frozen, with dotted overrides; unknown fields are refused by name."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from lampseg.config_augmentation import AugmentationConfig
from lampseg.config_file import read_tree
from lampseg.config_section import FiniteFloat, Fraction, PositiveFloat, PositiveInt, Section
from lampseg.errors import UserError

Patch = PositiveInt | tuple[PositiveInt, PositiveInt, PositiveInt] | Literal["whole"]


class NetworkConfig(Section):
    """Which network: `unet`, `seunet` or an importable class. Unset options keep the network's own defaults."""

    name: str = "unet"
    filters: PositiveInt | None = None
    norm: Literal["batch", "instance", "group"] | None = None
    depth: PositiveInt | None = None
    stem_stride: Literal[1, 2] | None = None
    kwargs: dict[str, Any] = Field(default_factory=dict)


Intensity = Literal["zscore", "nonzero", "stored"]
PREPROCESSING: Mapping[str, Mapping[str, Any]] = {
    # Section 3.1 of the paper: "re-sample the CT images to 1x1x1 mm spacing", "clip the voxel value within range
    # [-21, 89] and linearly transform each 3D image into range [0, 1]".
    "liver": {"spacing": (1.0, 1.0, 1.0), "window": (-21.0, 89.0)},
    # AnatomyNet's preprocessed volumes "directly": neither resampled nor rescaled, as in the paper's released script.
    "han": {"spacing": None, "intensity": "stored"},
}


class DataConfig(Section):
    """Where the cases are and how a volume becomes the network's input."""

    root: Path
    """A dataset's folder, or a listing of cases (docs/reference/data-layout.md)."""
    format: Literal["auto", "msd", "nnunet", "pddca", "anatomynet", "listing"] = "auto"
    """How the cases are laid out; auto tells by the content."""
    pddca_training: tuple[Literal["train", "optional", "onsite"], ...] = ("train", "optional")
    """Format pddca: the parts that are trained on; the fourth, offsite, is the paper's test set."""
    voxel_size: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.76, 0.76, 1.25)
    """mm (x, y, z) of .npy volumes, which state none; the default is about that of PDDCA's scans."""
    test_cases: PositiveInt | None = None
    """How many random training cases become the test set, instead of the dataset's own; None keeps that."""
    split_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Draws the test cases; it is apart from `seed`, so that repeated trainings have one test set."""
    split: Path | None = None
    """A JSON file with the case ids of `training`, `validation` and `test`, such as a run's split.json."""
    spacing: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    """Spacing in mm that volumes are resampled to, in RAS axis order; None keeps each volume's own."""
    window: tuple[FiniteFloat, FiniteFloat] | None = None
    """Intensities clipped to this range and mapped linearly to [0, 1]; None: as `intensity` says."""
    intensity: Intensity | tuple[Intensity | tuple[FiniteFloat, FiniteFloat], ...] | None = None
    """In place of `window`, for all channels or one entry each. zscore: zero mean, unit deviation (None is the same);
    nonzero: that of the voxels that are not 0, which stay 0 (MRI without background); stored: as in the file;
    [low, high]: a window."""
    preprocessing: Literal["liver", "han"] | None = None
    """The paper's, by name: sets spacing and intensities where they are not given themselves."""
    validation: Fraction = 0.2
    """Fraction of the training cases held out (by seed) to select the best model; 0 selects by the last step."""
    cache: Path | None = None
    """Where preprocessed volumes are kept; None: inside the run folder. Several runs may share one folder."""
    jobs: PositiveInt | Literal["auto"] = "auto"
    """Processes that preprocess volumes; auto: by the number and size of the volumes, the cores and free memory."""
    prefetch: Literal["auto", "always", "never"] = "auto"
    """Read the next step's voxels while this one computes; auto: on GPUs, as on CPUs both need the same cores."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        named = dict(PREPROCESSING.get(str(value.get("preprocessing")), {}))
        if any(value.get(field) is not None for field in ("window", "intensity")):
            named = {field: given for field, given in named.items() if field not in ("window", "intensity")}
        return {**named, **value}

    @field_validator("window", "intensity")
    @classmethod
    def _window_rises(cls, value: Any) -> Any:
        windows = [value] if value and isinstance(value[0], float) else value if isinstance(value, tuple) else []
        for window in windows:
            if not isinstance(window, str) and not window[0] < window[1]:
                raise ValueError(f"the window's lower end {window[0]} is not below its upper end {window[1]}")
        return value

    @model_validator(mode="after")
    def _one_rule(self) -> "DataConfig":
        if self.split is not None and self.test_cases is not None:
            raise ValueError("`split` and `test_cases` both choose the test set: leave one out")
        if self.window is not None and self.intensity is not None:
            raise ValueError("give either `window` or `intensity` (which may hold windows), not both")
        if self.intensity == ():
            raise ValueError("`intensity` is an empty list: give one entry for each channel")
        return self


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
            raise ValueError(f"give either `epochs` or `steps`, {'not both' if self.steps else 'one is needed'}")
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

    focal: Annotated[FiniteFloat, Field(ge=0)] = 0.5
    gamma: Annotated[FiniteFloat, Field(ge=0)] = 2.0
    class_weights: Literal["auto", "equal"] | tuple[PositiveFloat, ...] = "auto"
    """`auto`: from the training set's voxel frequencies; or one weight per class, background first."""


class OptimizerConfig(Section):
    """RMSprop, as in the paper; `kwargs` go to torch.optim.RMSprop (alpha, eps, momentum, weight_decay)."""

    name: Literal["rmsprop"] = "rmsprop"
    kwargs: dict[str, Any] = Field(default_factory=dict)


class ParallelConfig(Section):
    """On what the network runs, and how it is split."""

    devices: int | str | None = None
    """`2`, or `2x16GiB` to state each device's memory; None: every visible GPU, else one CPU process."""
    mode: Literal["auto", "pipeline", "spatial", "data", "tiled"] = "auto"
    """pipeline: all devices share one network; spatial: they share every volume; data: each has a copy of the network;
    tiled: one device runs the network tile by tile; auto: pipeline and copies, whichever is faster and fits, or slabs,
    or stages on slabs (on one device: tiles) if neither fits."""
    slabs: Literal["auto"] | tuple[PositiveInt, PositiveInt, PositiveInt] = "auto"
    """Ranks along X, Y and Z that cut every volume, such as [2, 2, 1]. Mode spatial: all devices of a copy; auto: the
    smallest surfaces. Modes pipeline and auto: each stage of the pipeline is shared by so many; auto: by one."""
    tile: Literal["auto"] | PositiveInt = "auto"
    """Modes tiled and auto: planes of the network's input in a tile; auto: the planner's choice."""
    replicas: PositiveInt | Literal["auto"] = 1
    """Copies of the network that share the micro-batches of a step; auto: the planner's choice. More than one sum the
    gradients in another order; RMSprop magnifies float32 rounding (to 3e-3 of the loss within 20 steps)."""
    schedule: Literal["auto", "gpipe", "1f1b", "interleaved", "v"] = "auto"
    micro_batches: PositiveInt | Literal["auto", "any"] = "auto"
    """How many micro-batches a mini-batch is cut into. auto: min(batch, 8), the same for any device count; any: the
    planner's choice, so that results depend on the devices."""
    recompute: Literal["auto", "none", "all_but_last", "all"] = "auto"
    """Run the forward again in the backward, instead of keeping its activations; auto: in the stages that need it."""
    hardware: str | None = None
    """Whose speeds to plan with: a preset such as h100, or a file of `lampseg calibrate`; None: this machine's."""
    replan: bool = True
    """After running out of memory, plan once more with a margin learnt from it, and continue at the last checkpoint."""
    timeout: Annotated[PositiveFloat, Field(le=30 * 24 * 3600)] = 1800.0
    """Seconds after which a rank that waits for a silent peer gives up."""

    @model_validator(mode="after")
    def _replicas_fit_mode(self) -> "ParallelConfig":
        if self.mode == "pipeline" and self.replicas not in ("auto", 1):
            raise ValueError(f"mode pipeline has one copy of the network, replicas is {self.replicas}: leave one out")
        if self.slabs != "auto" and self.mode in ("data", "tiled"):
            raise ValueError(
                f"slabs {list(self.slabs)} share volumes, in mode {self.mode} no devices do: leave one out"
            )
        if self.tile != "auto" and self.mode not in ("tiled", "auto"):
            raise ValueError(f"tile {self.tile} is for mode tiled, the mode is {self.mode}")
        if self.mode == "tiled" and self.replicas not in ("auto", 1):
            raise ValueError(f"mode tiled is for one device, replicas is {self.replicas}: leave one out")
        if self.mode == "tiled" and self.recompute not in ("auto", "none"):
            raise ValueError(f"mode tiled recomputes within its tiles, recompute is {self.recompute}: leave one out")
        return self


class ValidationConfig(Section):
    """When the validation split is segmented (whole volumes) and the best model chosen."""

    every_steps: PositiveInt | None = None
    """Besides the end of every curriculum stage."""
    window: Literal["whole", "patch"] = "whole"
    """whole: each volume in one pass; patch: in sliding windows of the curriculum stage's patch."""
    keep: bool = False
    """Keep the weights of every validation, as checkpoints/validated/step-N.safetensors."""


class CheckpointConfig(Section):
    """When the state is saved, so that `--resume` can continue at the exact step."""

    every_steps: PositiveInt = 100


class Config(Section):
    """Everything a run depends on."""

    network: NetworkConfig = NetworkConfig()
    data: DataConfig
    curriculum: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    sampling: SamplingConfig = SamplingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    parallel: ParallelConfig = ParallelConfig()
    validation: ValidationConfig = ValidationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    precision: Literal["float32", "bfloat16", "float64"] = "float32"
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


def load_config(path: Path, *, overrides: dict[str, str] | None = None) -> Config:
    """Reads a YAML file and applies dotted overrides, e.g. `{"network.filters": "64"}` (values are YAML).

    Relative paths in the file are relative to the current folder, as on the command line.

    Raises:
        UserError: the file is missing or not YAML, a field is unknown or has a bad value.
    """
    return parse_config(read_tree(path, overrides=overrides), source=str(path))


def parse_config(tree: dict[str, Any], *, source: str = "config") -> Config:
    """Builds a `Config` from plain values; `source` names the file in errors.

    Raises:
        UserError: naming every faulty field, what is wrong with it and, for a misspelt one, the nearest name.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        raise UserError(f"{source}: {'; '.join(_faults(error))}") from error


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML, defaults written out."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


# What a field of several types should be; pydantic would list what is wrong with it as each of them.
_EXPECTED = {
    "curriculum": "a list of at least one stage, such as `- {patch: 64, batch: 2, epochs: 100}`",
    "kwargs": "arguments by name, such as {momentum: 0.9}",
    "root": "the path of a folder, or of a listing",
    "patch": "one size above 0, three sizes such as [128, 128, 64], or `whole`",
    "spacing": "three sizes in mm above 0, such as [1, 1, 1.5]; leave it out to keep each volume's own",
    "voxel_size": "three sizes in mm above 0 (x, y, z), such as [0.76, 0.76, 1.25]",
    "pddca_training": "a list of parts out of `train`, `optional` and `onsite`",
    "window": "two numbers, the lower first, such as [-21, 89]; leave it out to normalise instead",
    "intensity": "`zscore`, `nonzero`, `stored`, or a list of those and of windows such as [-21, 89], one a channel",
    "jobs": "a whole number above 0, or `auto`",
    "axes": "a list of `x`, `y` and `z`",
    "sigma_voxels": "two numbers above 0, the lower first, such as [10, 50]",
    "magnitude": "two numbers above 0, the lower first, such as [600, 1200]",
    "class_weights": "`auto`, `equal`, or a list of one number above 0 for each class, background first",
    "devices": "a number such as 2, or 2x16GiB to state the memory of each",
    "micro_batches": "a whole number above 0, `auto` or `any`",
    "replicas": "a whole number above 0, or `auto`",
    "tile": "`auto`, or a whole number of planes above 0",
    "slabs": "`auto`, or three whole numbers above 0 such as [2, 1, 1]",
}
_FILL_IN = {
    "data": "add `data: {root: FOLDER}`",
    "data.root": "give the dataset's folder",
    "curriculum": f"add {_EXPECTED['curriculum']}",
}


def _faults(error: ValidationError) -> list[str]:
    """One text for each faulty field."""
    faults: dict[str, str] = {}
    for item in error.errors():
        section, place = _place(item["loc"])
        name, field, kind = ".".join(place), place[-1], item["type"]
        given = f" (given: {item['input']!r})"
        if kind == "extra_forbidden" or (kind == "invalid_key" and section is not None):
            assert section is not None
            near = difflib.get_close_matches(field, section.model_fields, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"the fields here are {', '.join(section.model_fields)}"
            text = f"unknown field `{name}`: {hint}"
        elif kind == "missing" and len(item["loc"]) == len(place):
            text = f"`{name}` is missing: {_FILL_IN.get(name, 'add it')}"
        elif kind == "value_error":
            text = f"`{name}`: {item['msg'].removeprefix('Value error, ')}{given}"
        elif kind == "too_short" and item["input"]:
            continue  # the stages that are there are faulty, and reported
        elif field in _EXPECTED:
            text = f"`{name}`: should be {_EXPECTED[field]}{given}"
        elif kind == "model_type":
            parent = AugmentationConfig if place[:-1] == ["augmentation"] else Config
            fields = StageConfig if place[0] == "curriculum" else _section_of(parent.model_fields[field].annotation)
            text = f"`{name}`: should hold fields ({', '.join(getattr(fields, 'model_fields', ()))}){given}"
        else:
            text = f"`{name}`: {item['msg'].replace('Input should', 'should')}{given}"
        faults.setdefault(name, text)
    return list(faults.values())


def _place(loc: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, list[str]]:
    """Where a fault lies: the section in which the last name is unknown, if it is, and the names down to the field.

    What pydantic appends to the field (the types that it tried, positions in a list) is left out.
    """
    section: type[BaseModel] = Config
    place: list[str] = []
    for part in loc:
        place.append(str(part))
        if place[-2:-1] == ["curriculum"] and isinstance(part, int):
            section = StageConfig
        elif part not in section.model_fields:
            return section, place
        elif part != "curriculum":
            inner = _section_of(section.model_fields[str(part)].annotation)
            if inner is None:
                break
            section = inner
    return None, place


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one, or may."""
    found = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in found if issubclass(kind, BaseModel)), None)

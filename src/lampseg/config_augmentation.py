"""The block `augmentation`: what is done at random to what is drawn for training, and the paper's two names for it."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lampseg.config_section import FiniteFloat, Fraction, PositiveFloat, Section

Degrees = Annotated[float, Field(ge=0, le=180)]
ShearDegrees = Annotated[float, Field(ge=0, le=45)]
Range = tuple[PositiveFloat, PositiveFloat]


class FlipConfig(Section):
    """Mirrors along each of `axes`, independently of the others."""

    axes: Annotated[tuple[Literal["x", "y", "z"], ...], Field(min_length=1)] = ("x", "y")
    probability: Fraction = 0.1
    """Of each axis."""
    swap_pairs: bool = False
    """Exchange the labels of left and right organs in a mirrored box; without, classes in pairs forbid flips."""


class Rotate90Config(Section):
    """90, 180 or 270 degrees in the XY plane; 180 where X and Y differ in size, so that the shape stays."""

    probability: Fraction = 0.1


class NoiseConfig(Section):
    """A uniform random number added to every voxel of every channel, after the intensity window."""

    low: FiniteFloat = -0.2
    high: FiniteFloat = 0.2
    probability: Fraction = 1.0

    @model_validator(mode="after")
    def _rises(self) -> "NoiseConfig":
        if not self.low < self.high:
            raise ValueError(f"low {self.low} is not below high {self.high}")
        return self


class AffineConfig(Section):
    """Every number is drawn uniformly between minus and plus what is given, for each axis."""

    rotation_degrees: Degrees = 15.0
    """About each of the three axes."""
    scale: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Sizes are multiplied by 1 - scale to 1 + scale, along each axis for itself."""
    shear_degrees: ShearDegrees = 10.0
    """Angle whose tangent shears each axis along each other one."""
    shift_fraction: Fraction = 0.05
    """Of the box's size."""
    probability: Fraction = 0.8


class ElasticConfig(Section):
    """A smooth random displacement: white noise in [-1, 1] through a Gaussian, times `magnitude`, along each axis."""

    sigma_voxels: Range = (10.0, 50.0)
    """The Gaussian's deviation is drawn from this range."""
    magnitude: Range = (600.0, 1200.0)
    """Drawn from this range; the displacement's deviation is 0.577 magnitude / (3.54 sigma)^1.5 voxels."""
    probability: Fraction = 0.8

    @field_validator("sigma_voxels", "magnitude")
    @classmethod
    def _ordered(cls, value: Range) -> Range:
        if value[0] > value[1]:
            raise ValueError(f"the range's lower end {value[0]} is above its upper end {value[1]}")
        return value

    @field_validator("sigma_voxels")
    @classmethod
    def _smooth(cls, value: Range) -> Range:
        if value[0] < 2:
            raise ValueError(f"sigma of {value[0]} voxels is rough, not smooth: give at least 2")
        return value


NAMED: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "none": {},
    # Section 3.1 of the paper: "randomly flip and rotation 90 degrees in XY space with probability 0.1. We further add
    # uniform random noise [-0.2, 0.2]".
    "liver": {
        "flip": {"axes": ("x", "y"), "probability": 0.1},
        "rotate90": {"probability": 0.1},
        "noise": {"low": -0.2, "high": 0.2, "probability": 1.0},
    },
    # "the same data augmentation techniques in [AnatomyNet]", with the numbers of the paper's released training script;
    # docs/reference/augmentation.md says where AnatomyNet's own differ.
    "han": {
        "affine": {
            "rotation_degrees": 15.0,
            "scale": 0.2,
            "shear_degrees": 10.0,
            "shift_fraction": 0.05,
            "probability": 0.8,
        },
        "elastic": {"sigma_voxels": (10.0, 50.0), "magnitude": (600.0, 1200.0), "probability": 0.8},
    },
}


class AugmentationConfig(Section):
    """`none`, `liver`, `han`, or the transforms themselves; those that are left out are not done.

    One random number decides for `affine` and `elastic`, so with equal probabilities they come together, or not at all.
    """

    affine: AffineConfig | None = None
    elastic: ElasticConfig | None = None
    flip: FlipConfig | None = None
    rotate90: Rotate90Config | None = None
    noise: NoiseConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if value is None:
            return {}
        if isinstance(value, str):
            if value not in NAMED:
                raise ValueError(
                    f"no augmentation has this name; choose one of {', '.join(NAMED)}, or give the transforms "
                    f"({', '.join(cls.model_fields)})"
                )
            return NAMED[value]
        return value

    @property
    def resamples(self) -> bool:
        """Whether voxels may come from between the stored ones, and from outside the drawn box."""
        return self.affine is not None or self.elastic is not None

    @property
    def used(self) -> bool:
        return any(part is not None for part in (self.affine, self.elastic, self.flip, self.rotate90, self.noise))

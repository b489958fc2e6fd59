"""Intensities as the network reads them: windows, z-scores, or as stored, for all channels or each for itself."""

from typing import Any

import numpy as np
import numpy.typing as npt

from lampseg.config import DataConfig
from lampseg.errors import UserError


def to_network_intensities(image: Any, data: DataConfig) -> npt.NDArray[np.float32]:
    """A float32 tensor (C, X, Y, Z) -> an array of the same shape: `data.window`, else `data.intensity`.

    Raises:
        UserError: `data.intensity` has another number of entries than the image has channels.
    """
    rule = data.window if data.window is not None else data.intensity or "zscore"
    if isinstance(rule, str) or isinstance(rule[0], float):
        scaled = _scaled(image, rule)
    else:
        if len(rule) != len(image):
            raise UserError(
                f"data.intensity: {len(rule)} entries, but the images have {len(image)} channels; give one entry each, "
                "or one word for all"
            )
        scaled = np.concatenate([_scaled(channel[None], entry) for channel, entry in zip(image, rule)])
    return np.ascontiguousarray(scaled, dtype=np.float32)


def _scaled(image: Any, rule: Any) -> Any:
    from monai.transforms import NormalizeIntensity, ScaleIntensityRange  # here: importing MONAI takes seconds

    if rule == "stored":
        return image.numpy()
    if isinstance(rule, str):
        return NormalizeIntensity(nonzero=rule == "nonzero", channel_wise=True)(image).numpy()
    low, high = rule
    return ScaleIntensityRange(a_min=low, a_max=high, b_min=0.0, b_max=1.0, clip=True)(image).numpy()

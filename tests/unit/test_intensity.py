"""Intensities: each rule is what it says, for one channel or several; the paper's preprocessing has a name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lampseg.config import DataConfig, parse_config
from lampseg.data import Volume, image_to_network
from lampseg.errors import UserError


def scaled(array: Any, **fields: Any) -> Any:
    volume = Volume(np.asarray(array, np.float32), np.eye(4))
    return image_to_network(volume, data=DataConfig(root=Path("unused"), **fields))[0]


def masked(channels: int) -> Any:
    """Normal numbers, a quarter of them exactly 0."""
    rng = np.random.default_rng(0)
    array = rng.normal(300, 40, (channels, 8, 8, 8))
    array[:, :4, :4] = 0
    return array


def test_nonzero_leaves_the_background_at_zero() -> None:
    array = masked(2)
    found = scaled(array, intensity="nonzero")
    assert not found[array == 0].any()
    for channel, original in zip(found, array):
        inner = channel[original != 0]
        assert inner.mean() == pytest.approx(0, abs=1e-4)
        assert inner.std() == pytest.approx(1, abs=1e-4)


def test_zscore_is_what_nothing_means() -> None:
    array = masked(2)
    np.testing.assert_array_equal(scaled(array, intensity="zscore"), scaled(array))
    assert scaled(array).mean(axis=(1, 2, 3)) == pytest.approx([0, 0], abs=1e-4)


def test_stored_is_stored() -> None:
    np.testing.assert_array_equal(scaled(masked(2), intensity="stored"), masked(2).astype(np.float32))


def test_one_entry_for_each_channel() -> None:
    array = masked(3)
    found = scaled(array, intensity=[[0, 600], "nonzero", "stored"])
    assert (found.shape, found.dtype) == ((3, 8, 8, 8), np.float32)
    np.testing.assert_allclose(found[0], np.clip(array[0] / 600, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(found[1], scaled(array, intensity="nonzero")[1])
    np.testing.assert_array_equal(found[2], array[2].astype(np.float32))
    np.testing.assert_array_equal(scaled(array[:1], intensity=[[0, 600]]), scaled(array[:1], window=(0, 600)))


def test_another_number_of_channels_is_refused() -> None:
    with pytest.raises(UserError, match=r"data\.intensity: 2 entries, but the images have 3 channels"):
        scaled(masked(3), intensity=["stored", "stored"])


def data(**fields: Any) -> DataConfig:
    return parse_config({"data": {"root": "x", **fields}, "curriculum": [{"patch": 8, "steps": 1}]}).data


def test_the_papers_preprocessing_by_name() -> None:
    liver, han = data(preprocessing="liver"), data(preprocessing="han")
    assert (liver.spacing, liver.window, liver.intensity) == ((1, 1, 1), (-21, 89), None)
    assert (han.spacing, han.window, han.intensity) == (None, None, "stored")
    for changed, expected in (
        ({"spacing": [1, 1, 2]}, ((1, 1, 2), (-21, 89), None)),
        ({"window": [0, 1]}, ((1, 1, 1), (0, 1), None)),
        ({"intensity": "nonzero"}, ((1, 1, 1), None, "nonzero")),
        ({"window": None}, ((1, 1, 1), None, None)),
    ):
        found = data(preprocessing="liver", **changed)
        assert (found.spacing, found.window, found.intensity) == expected
        assert data(**found.model_dump(mode="json", exclude={"root"})) == found, "the resolved file says the same"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"preprocessing": "lung"}, r"`data\.preprocessing`: should be 'liver' or 'han'"),
        ({"intensity": "max"}, r"`data\.intensity`: should be `zscore`, `nonzero`, `stored`, or a list"),
        ({"intensity": [[1, 0]]}, r"`data\.intensity`: the window's lower end 1\.0 is not below"),
        ({"intensity": []}, "`intensity` is an empty list"),
        ({"intensity": "stored", "window": [0, 1]}, "either `window` or `intensity`"),
        ({"jobs": 0}, r"`data\.jobs`: should be a whole number above 0, or `auto`"),
    ],
)
def test_faults(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        data(**fields)

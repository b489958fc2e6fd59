"""The memory of whole volumes: the planner's figure for the padded volume, by network and precision."""

from dataclasses import replace

import pytest

from lampseg.config import parse_config
from lampseg.errors import UserError
from lampseg.networks import build_network
from lampseg.parallel.devices import parse_devices
from lampseg.training.subject import Subject, hardware_of
from lampseg.training.whole_volume import Need, needs, parse_networks


def test_names_of_networks() -> None:
    ((name, config),) = parse_networks(["seunet-48"])
    assert (name, config.name, config.filters) == ("seunet-48", "seunet", 48)
    assert parse_networks([]) == ()


@pytest.mark.parametrize("name", ["unet", "unet-", "unet-0", "-32", "vnet-32", "unet-x", ""])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"--networks: `.*` is not a network and its filters, such as unet-32"):
        parse_networks([name])


def test_the_figure_is_that_of_the_planner() -> None:
    found = list(needs(parse_networks(["unet-2"]), shape=(60, 64, 33), channels=2, classes=3))
    assert [(need.precision, need.shape) for need in found] == [("float32", (64, 64, 64)), ("bfloat16", (64, 64, 64))]
    config = parse_config(
        {
            "network": {"name": "unet", "filters": 2},
            "data": {"root": "none"},
            "curriculum": [{"patch": "whole", "steps": 1}],
            "parallel": {"recompute": "none"},
        }
    )
    devices = parse_devices("1x80GiB", planning=True)
    network = build_network(config.network, in_channels=2, out_channels=3)
    subject = Subject(config, network, 3, (32,) * 3, (64,) * 3, devices, hardware_of(config, devices), 2, (True,))
    expected = replace(subject.problem(0), rehearse=None, memory=None).solve().plan.peak_bytes
    assert found[0].peak_bytes == expected
    assert found[0].parameters == sum(parameter.numel() for parameter in network.parameters())
    assert found[1].peak_bytes is not None
    assert found[1].peak_bytes < expected


def test_a_network_that_cannot_take_the_volume() -> None:
    (need, _) = needs(parse_networks(["unet-2"]), shape=(8, 8, 8), channels=1, classes=2)
    assert need.peak_bytes is None
    assert need.problem
    assert need.devices(16) is None


def test_devices_that_have_enough_together() -> None:
    need = Need("unet-32", "float32", (1, 1, 1), 1, 33 * 1024.0**3, None)
    assert [need.devices(size) for size in (16, 24, 40)] == [3, 2, 1]
    assert replace(need, peak_bytes=32 * 1024.0**3).devices(16) == 2

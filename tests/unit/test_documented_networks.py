"""The networks of docs/reference/networks.md, as they are written there: built, planned, and of the stated stride."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lampseg.commands import plan as planning
from lampseg.config import parse_config
from lampseg.networks import network_sizes
from lampseg.training.plans import make_plans

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "networks.md"
STRIDES = {
    "unet": (32, 32, 32),
    "seunet": (32, 32, 32),
    "BasicUNet": (1, 1, 1),
    "DynUNet": (16, 16, 8),
    "AttentionUnet": (8, 8, 8),
    "UNet": (16, 16, 16),
    "SegResNet": (8, 8, 8),
    "VNet": (16, 16, 16),
    "SwinUNETR": (32, 32, 32),
    "PlainConvUNet": (16, 32, 32),
    "ResidualEncoderUNet": (32, 32, 32),
    "UNETR": (96, 96, 96),
}


def examples() -> list[dict[str, Any]]:
    """Every `network:` of the page's YAML."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    sections = [section for block in blocks for section in re.split(r"^(?=network:)", block, flags=re.MULTILINE)]
    return [yaml.safe_load(section)["network"] for section in sections if section]


def short(name: str) -> str:
    return name.rpartition(".")[2]


def test_every_network_has_an_example() -> None:
    assert {short(example["name"]) for example in examples()} == STRIDES.keys()


@pytest.mark.parametrize("example", examples(), ids=lambda example: short(example["name"]))
def test_the_example_is_built_and_planned(example: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[Any] = []

    def noted(*args: Any, **options: Any) -> Any:
        sizes.append(network_sizes(*args, **options))
        return sizes[-1]

    monkeypatch.setattr(planning, "network_sizes", noted)
    tree = {
        "network": example,
        "data": {"root": "nowhere"},
        "curriculum": [{"patch": 96, "batch": 2, "steps": 1}],
        "parallel": {"devices": 4, "mode": "pipeline", "schedule": "1f1b"},
    }
    subject = planning.subject_of(parse_config(tree), shape=(128, 128, 128), classes=3)
    (plan,) = make_plans(subject)
    assert plan.network == example["name"]
    assert [stage.index for stage in plan.stages] == [0, 1, 2, 3]
    assert min(stage.forward_seconds for stage in plan.stages) > 0
    ((stride, window),) = sizes
    assert stride == STRIDES[short(plan.network)]
    assert window == (stride if plan.network.endswith("UNETR") and "Swin" not in plan.network else None)

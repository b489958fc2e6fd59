"""The configuration: YAML and overrides become typed values, and every fault is named with its field and a remedy."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from lampseg.config import Config, dump_config, load_config, parse_config
from lampseg.errors import UserError

STAGE = {"patch": 64, "batch": 16, "epochs": 4800}


def tree(**changes: Any) -> dict[str, Any]:
    return {"data": {"root": "data"}, "curriculum": [STAGE], **changes}


def write(folder: Path, content: str | dict[str, Any]) -> Path:
    path = folder / "config.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def test_the_curriculum_of_the_design(tmp_path: Path) -> None:
    text = """
network: {name: unet, filters: 32}
data: {root: somewhere, format: auto, spacing: [1, 1, 1], window: [-21, 89]}
curriculum:
  - {patch: 64, batch: 16, epochs: 4800, lr: 1e-3}
  - {patch: [128, 128, 96], batch: 4, steps: 500}
  - {patch: whole, batch: 1, epochs: 300}
parallel: {devices: 2, mode: auto}
precision: float32
seed: 0
"""
    config = load_config(write(tmp_path, text))
    assert [stage.size for stage in config.curriculum] == [(64, 64, 64), (128, 128, 96), None]
    assert [stage.whole for stage in config.curriculum] == [False, False, True]
    assert config.curriculum[0].lr == 1e-3
    assert (config.data.window, config.parallel.devices) == ((-21, 89), 2)


def test_what_is_written_out_reads_back_as_the_same(tmp_path: Path) -> None:
    config = parse_config(tree(loss={"class_weights": [1, 2.5]}, parallel={"devices": "2x16GiB"}))
    assert load_config(write(tmp_path, dump_config(config))) == config
    assert "class_balanced: true" in dump_config(config)


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("network.filters", "64", 64),
        ("network.kwargs.depth", "3", 3),
        ("curriculum.0.patch", "[16, 16, 32]", (16, 16, 32)),
        ("curriculum.0.lr", "5e-4", 5e-4),
        ("curriculum", "[{patch: whole, steps: 3}]", None),
        ("data.window", "[-21, 89]", (-21, 89)),
        ("parallel.devices", "2x16GiB", "2x16GiB"),
        ("sampling.class_balanced", "no", False),
        ("data.spacing", "null", None),
    ],
)
def test_overrides(field: str, text: str, value: Any, tmp_path: Path) -> None:
    found: Any = load_config(write(tmp_path, tree()), overrides={field: text})
    if field == "curriculum":
        assert found.curriculum[0].whole
        return
    for name in field.split("."):
        found = found[int(name)] if name.isdigit() else found[name] if isinstance(found, dict) else getattr(found, name)
    assert found == value


@pytest.mark.parametrize(
    ("field", "text", "message"),
    [
        ("network.filter", "8", r"unknown field `network\.filter`: did you mean `filters`\?"),
        ("curriculum.0.batsh", "8", r"unknown field `curriculum\.0\.batsh`: did you mean `batch`\?"),
        ("curriculum.1.batch", "8", r"curriculum\.1\.batch: there is no entry `1`: its entries are 0 to 0"),
        ("curriculum.patch", "8", "there is no entry `patch`"),
        ("curriculum.-1.patch", "8", "there is no entry `-1`"),
        ("data.root.x", "8", r"data\.root\.x: `root` holds the plain value 'data', it has no field `x`"),
        ("data.window", "[1,", "data.window, line 1, column 4: not valid YAML"),
        ("curriculum.0", "null", r"`curriculum\.0`: should hold fields \(patch, batch"),
        ("", "8", "unknown field ``"),
    ],
)
def test_overrides_that_are_refused(field: str, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path, tree()), overrides={field: text})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"curiculum": 3}, r"unknown field `curiculum`: did you mean `curriculum`\?"),
        ({"zzz": 3}, "unknown field `zzz`: the fields here are network, data, curriculum"),
        ({1: 3}, "unknown field `1`: the fields"),
        ({"network": {1: 3}}, r"unknown field `network\.1`"),
        ({"network": "unet"}, r"`network`: should hold fields \(name, filters, .*given: 'unet'"),
        ({"network": {"filters": "many"}}, r"`network\.filters`: should be a valid integer.*\(given: 'many'\)"),
        ({"network": {"filters": 2.5}}, r"`network\.filters`: should be a valid integer"),
        ({"network": {"filters": 0}}, r"`network\.filters`: should be greater than 0"),
        ({"network": {"filters": True}}, r"`network\.filters`: a switch \(true, false, yes"),
        ({"network": {"name": False}}, r"`network\.name`: a switch .*quote it"),
        ({"network": {"norm": "layer"}}, r"`network\.norm`: should be 'batch', 'instance' or 'group'"),
        ({"network": {"kwargs": [1]}}, r"`network\.kwargs`: should be arguments by name"),
        ({"data": {}}, r"`data\.root` is missing: give the dataset's folder"),
        ({"data": None}, r"`data`: should hold fields \(root, format"),
        ({"data": {"root": 5}}, r"`data\.root`: should be the path of a folder"),
        ({"data": {"root": "x", "spacing": [1, 1]}}, r"`data\.spacing`: should be three sizes in mm above 0"),
        ({"data": {"root": "x", "spacing": [1, 1, 0]}}, r"`data\.spacing`: should be three sizes in mm above 0"),
        ({"data": {"root": "x", "window": [3, 1]}}, "lower end 3.0 is not below its upper end 1.0"),
        ({"data": {"root": "x", "window": [0, float("inf")]}}, r"`data\.window`: should be two numbers"),
        ({"data": {"root": "x", "validation": 1.5}}, r"`data\.validation`: should be less than or equal to 1"),
        ({"curriculum": []}, "`curriculum`: should be a list of at least one stage"),
        ({"curriculum": STAGE}, "`curriculum`: should be a list of at least one stage"),
        ({"curriculum": [5]}, r"`curriculum\.0`: should hold fields \(patch, batch, epochs, steps"),
        ({"curriculum": [{"patch": 8}]}, r"`curriculum\.0`: give either `epochs` or `steps`, one is needed"),
        ({"curriculum": [{**STAGE, "steps": 1}]}, r"`curriculum\.0`: give either `epochs` or `steps`, not both"),
        ({"curriculum": [STAGE, {**STAGE, "epocs": 1}]}, r"`curriculum\.1\.epocs`: did you mean `epochs`\?"),
        (
            {"curriculum": [{**STAGE, "patch": "hole"}]},
            r"`curriculum\.0\.patch`: should be one size above 0, three sizes",
        ),
        ({"curriculum": [{**STAGE, "patch": [8, 8]}]}, r"`curriculum\.0\.patch`: should be one size .*given: \[8, 8\]"),
        ({"curriculum": [{**STAGE, "patch": 0}]}, r"`curriculum\.0\.patch`: should be one size"),
        ({"curriculum": [{**STAGE, "lr": float("nan")}]}, r"`curriculum\.0\.lr`: should be a finite number"),
        ({"loss": {"class_weights": "autos"}}, r"`loss\.class_weights`: should be `auto`, `equal`, or a list"),
        ({"loss": {"class_weights": [1, -1]}}, r"`loss\.class_weights`: should be `auto`, `equal`, or a list"),
        ({"parallel": {"devices": 1.5}}, r"`parallel\.devices`: should be a number such as 2, or 2x16GiB"),
        ({"parallel": {"timeout": 1e300}}, r"`parallel\.timeout`: should be less than or equal to"),
        ({"precision": "float46"}, "`precision`: should be 'float32', 'bfloat16' or 'float64'"),
        ({"seed": -1}, "`seed`: should be greater than or equal to 0"),
        ({"seed": 2**63}, "`seed`: should be less than"),
    ],
)
def test_faults(changes: dict[Any, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^file: .*{message}") as caught:
        parse_config({**tree(), **changes}, source="file")
    assert str(caught.value).count("`curriculum") <= 2, "one fault is reported once"
    assert "constrained" not in str(caught.value)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(UserError) as caught:
        parse_config({"network": {"filter": 1}, "seed": "x"}, source="file")
    for part in ("`network.filter`", "`seed`", "`data` is missing", "`curriculum` is missing"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("network:\n\tname: unet\n", r"config\.yaml, line 2, column 1: not valid YAML: .*indent with spaces"),
        ("a: [1\nb: 2\n", r"config\.yaml, line 2, column \d: not valid YAML"),
        ("- a\n", "expected fields such as `data:`.*found list"),
        ("", "expected fields such as `data:`.*found nothing"),
        ("hello", "found str"),
        ("seed: 1\nseed: 2\n", "line 2, column 1: not valid YAML: `seed` is given twice: keep one"),
        ("data: {root: a, root: b}\n", "`root` is given twice"),
        ("a: &a [*a]\n", r"an anchor \(&\) contains itself"),
        ("a: " + 2000 * "[", "is nested too deeply"),
        ("a: 2024-13-45\n", "not valid YAML: month must be in"),
        ("a: !!python/object/apply:os.system ['ls']\n", "could not determine a constructor"),
        ("a: \x00\n", "not valid YAML: unacceptable character"),
    ],
)
def test_files_that_are_no_configuration(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(write(tmp_path, content))
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: no such configuration file; check the path"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="is a folder; give the YAML file itself"):
        load_config(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    with pytest.raises(UserError, match=r"latin\.yaml: cannot be read .*UTF-8"):
        load_config(tmp_path / "latin.yaml")


def test_anchors_and_merged_fields_work(tmp_path: Path) -> None:
    text = "data: {root: x}\ncurriculum:\n  - &first {patch: 8, steps: 2}\n  - {<<: *first, patch: whole}\n"
    config = load_config(write(tmp_path, text))
    assert [stage.steps for stage in config.curriculum] == [2, 2]


def test_values_cannot_be_changed() -> None:
    config: Config = parse_config(tree())
    with pytest.raises(ValueError, match="frozen"):
        config.seed = 1  # type: ignore[misc]

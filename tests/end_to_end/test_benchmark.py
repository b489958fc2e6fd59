"""`lampseg benchmark`: every benchmark runs to its end in its quick version, and faults are named."""

import json
from pathlib import Path

import pytest

from lampseg.commands import benchmark as verb
from lampseg.errors import UserError
from tests.end_to_end.command import lampseg

pytestmark = pytest.mark.timeout(180)


@pytest.mark.parametrize("name", ["plan_accuracy", "optimal_cut", "spatial", "inference", "loading"])
def test_a_quick_benchmark_writes_its_results(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results"
    lampseg("benchmark", name, "--out", out, "--quick")
    said = capfd.readouterr().out
    recorded = json.loads((out / f"{name}.json").read_text())
    assert {"date", "machine", "torch", "commit", "summary", "data"} <= recorded.keys()
    for line in recorded["summary"]:
        assert line in said
        assert line in (out / f"{name}.md").read_text()
    if name == "inference":
        assert [row["way"] for row in recorded["data"]["timed"]] == ["whole", "32^3, overlap 0", "32^3, overlap 0.5"]
        assert [round(row["ratio"], 2) for row in recorded["data"]["paper"]] == [1.98, 1.84, 2.85, 4.46, 6.12, 7.16]
    if name == "plan_accuracy":  # the claim itself, on small cases
        assert len(recorded["data"]["memory"]) == 2
        assert all(abs(error) < 0.03 for case in recorded["data"]["memory"] for error in case["errors"])


def test_tiles_are_recorded_in_two_parts(tmp_path: Path) -> None:
    """Memory is counted, whatever else the machine does; times are not."""
    lampseg("benchmark", "tiled", "--out", tmp_path / "results", "--quick")
    memory, times = (
        json.loads((tmp_path / "results" / f"tiled_{part}.json").read_text()) for part in ("memory", "times")
    )
    (found,) = memory["data"]
    assert found["peaks"]["tiles"] < found["peaks"]["plain"]
    assert abs(found["errors"]["tiles"]) < 0.03
    assert times["data"][0]["seconds"].keys() == {"plain", "recompute", "tiles"}


def test_they_are_listed() -> None:
    listed = verb.benchmarks()
    assert {"optimal_cut", "paper_hardware", "pipeline_throughput", "plan_accuracy", "planning_time"} <= listed.keys()
    assert all(listed.values())


def test_an_unknown_one_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"`speed` is not known; choose one of .*optimal_cut, .*plan_accuracy"):
        verb.benchmark("speed")


def test_quick_figures_are_not_recorded() -> None:
    with pytest.raises(UserError, match="give a folder with --out"):
        verb.benchmark("plan_accuracy", quick=True)


def test_outside_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = tmp_path / "lib" / "site-packages" / "lampseg" / "__init__.py"
    monkeypatch.setattr(verb.lampseg, "__file__", str(installed))
    with pytest.raises(UserError, match="clone the repository"):
        verb.benchmarks()

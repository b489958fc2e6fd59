"""`reproduce`: the whole path in small, twice: the second time nothing is left to do."""

import contextlib
import csv
import io
import json
from pathlib import Path

import pytest

from tests.end_to_end.command import lampseg as run_command

ARGUMENTS = ("reproduce", "liver", "--scale", "smoke", "--only", "unet-32", "--devices", "1", "--rounds", "2")


def lampseg(*arguments: str | Path) -> str:
    """Runs the command and returns what it printed, not wrapped."""
    text = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(text):
        patch.setenv("COLUMNS", "200")
        run_command(*arguments)
    return text.getvalue()


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    assert "what it will cost on 1 device(s)" in lampseg(*ARGUMENTS, "--out", folder, "--selected-on-test")
    return folder


def test_the_tables_are_filled(out: Path) -> None:
    table = {row["model (input)"]: row for row in csv.DictReader((out / "table4.csv").open())}
    for name in ("64^3", "128^3", "192^3"):
        row = table[f"U-Net-32 ({name})"]
        assert 0 <= float(row["average ours"]) <= 100
        difference = float(row["average ours"]) - float(row["average paper"])
        assert float(row["average difference"]) == pytest.approx(difference)
    assert table["SEU-Net-128 (64^3)"]["average ours"] == ""
    assert float(table["SEU-Net-128 (64^3)"]["average paper"]) == 21.89
    seconds = {row["model (input)"]: row for row in csv.DictReader((out / "table5.csv").open())}
    assert float(seconds["U-Net-32 (256^3)"]["seconds ours"]) > 0
    assert len(json.loads((out / "unet-32" / "192" / "seconds.json").read_text())["rounds"]) == 2
    page = (out / "report.html").read_text()
    for text in ("Table 4", "Figure 1", "Figure 5", "larger inputs", "Selected on the test set", "3 of 18 rows done"):
        assert text in page


def test_each_row_is_the_model_of_its_stage(out: Path) -> None:
    for stage, name in enumerate(("64", "128", "192"), start=1):
        record = json.loads((out / "unet-32" / name / "predictions" / "predictions.json").read_text())
        assert record["checkpoint"] == f"stage-{stage}-best"
        assert record["window"] == [[16] * 3, [32] * 3, [48] * 3][stage - 1]


def test_what_is_selected_on_the_test_set_is_never_worse(out: Path) -> None:
    honest, flattering = (
        {row["model (input)"]: row for row in csv.DictReader((out / f"table4{kind}.csv").open())}
        for kind in ("", "-selected-on-test")
    )
    means = [float(flattering[f"U-Net-32 ({name}^3)"]["average ours"]) for name in (64, 128, 192)]
    assert means == sorted(means)
    for name in (64, 128, 192):
        row = f"U-Net-32 ({name}^3)"
        assert float(flattering[row]["average ours"]) >= float(honest[row]["average ours"]) - 1e-6


def test_the_same_command_again_has_nothing_to_do(out: Path) -> None:
    files = {path: path.stat().st_mtime_ns for path in (out / "unet-32").rglob("*") if path.is_file()}
    said = lampseg(*ARGUMENTS, "--out", out)
    assert "done before" in said
    assert {path: path.stat().st_mtime_ns for path in (out / "unet-32").rglob("*") if path.is_file()} == files


def test_a_dry_run_needs_no_data_and_writes_nothing(tmp_path: Path) -> None:
    said = lampseg(
        *("reproduce", "han", "--dry-run", "--only", "unet-32", "--devices", "4x32GiB", "--out", tmp_path / "study")
    )
    assert "what it will cost on 4 device(s)" in said
    assert "70800" in said, "4800 epochs of 235 cases in batches of 16"
    assert not (tmp_path / "study").exists()

"""The journal: metrics.jsonl holds every step once, also after a kill; what cannot be written is reported."""

import errno
import json
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lampseg.errors import UserError
from lampseg.training.journal import Journal
from tests.limits import no_space_beyond


def step(number: int, loss: float = 0.5) -> dict[str, Any]:
    return {"step": number, "stage": 0, "epoch": 0, "loss": loss, "seconds": 0.1, "lr": 1e-3}


def validation(number: int, score: float | None = 0.25) -> dict[str, Any]:
    return {
        "step": number,
        "stage": 0,
        "epoch": 0,
        "validation": score,
        "dice": {"a": score, "b": None},
        "seconds": 1.0,
    }


def plain() -> Console:
    return Console(file=StringIO(), force_terminal=False, width=120)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_steps_and_validations_are_lines_and_scalars(tmp_path: Path) -> None:
    console = plain()
    with Journal(tmp_path, total=2, console=console) as journal:
        journal.step(step(1, 0.75))
        assert lines(tmp_path) == [step(1, 0.75)], "a line is there as soon as the step is done"
        journal.step(step(2))
        journal.validation(validation(2))
        journal.validation(validation(2, None))
    assert lines(tmp_path) == [step(1, 0.75), step(2), validation(2), validation(2, None)]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == [0.75, 0.5]
    assert [event.value for event in events.Scalars("validation/dice")] == [0.25]
    assert "validation/b" not in events.Tags()["scalars"]
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "step 2/2: stage 1, epoch 1, loss 0.5000" in said
    assert "mean Dice 0.2500" in said
    assert "no class to score" in said


def test_resuming_drops_what_comes_after_the_checkpoint(tmp_path: Path) -> None:
    with Journal(tmp_path, total=9, console=plain()) as journal:
        for number in (1, 2, 3):
            journal.step(step(number))
        journal.validation(validation(3))
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "lo')
    with Journal(tmp_path, total=9, step=2, console=plain()) as journal:
        assert lines(tmp_path) == [step(1), step(2)]
        journal.step(step(3, 0.25))
    assert lines(tmp_path) == [step(1), step(2), step(3, 0.25)]
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[1]", b"7", b'"step"', b'{"loss": 1}', b'{"step": "x"}', b""])
def test_lines_that_are_no_records_are_dropped(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(line + b"\n" + json.dumps(step(1)).encode() + b"\n")
    with Journal(tmp_path, total=9, step=1, console=plain()):
        assert lines(tmp_path) == [step(1)]


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("size", range(0, 3000, 150))
def test_a_full_disk_shows_no_traceback(size: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Wherever it strikes: TensorBoard writes in a thread of its own, which would print one."""
    capfd.readouterr()
    with no_space_beyond(size), pytest.raises(UserError, match="cannot be written"):
        write_many(tmp_path)
    assert capfd.readouterr().err == ""


def write_many(run: Path) -> None:
    with Journal(run, total=1000, console=plain()) as journal:
        for number in range(1, 100):
            journal.step(step(number))


def test_a_full_disk_is_reported_with_the_file(tmp_path: Path) -> None:
    with (
        no_space_beyond(3000),
        pytest.raises(UserError, match=r"(metrics\.jsonl|tensorboard): cannot be written .*--resume"),
    ):
        write_many(tmp_path)
    with Journal(tmp_path, total=1000, step=5, console=plain()):
        assert [record["step"] for record in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_a_fault_of_tensorboard_is_reported_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its writer works in the background and raises what went wrong there in a later call, and on closing."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", full)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.close", full)
    with pytest.raises(UserError, match=r"tensorboard: cannot be written .*No space left.*free space, then continue"):
        write_many(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: the run folder cannot be written"):
        Journal(tmp_path / "file", total=1, console=plain())

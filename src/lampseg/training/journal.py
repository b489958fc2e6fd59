"""The journal of a run, kept by rank 0: metrics.jsonl, TensorBoard, and progress on the terminal."""

import contextlib
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lampseg.errors import UserError

PLAIN_INTERVAL = 5.0
"""Seconds between lines of progress where there is no terminal."""


class Journal:
    """Writes each step as it is done; a line is complete or absent, whenever the run is killed.

    Args:
        total: steps of the whole run.
        step: the step that the run continues after; later lines of an interrupted run are removed.
    """

    def __init__(self, run: Path, *, total: int, step: int = 0, console: Console | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: it takes a second to import

        self._path = run / "metrics.jsonl"
        try:
            _keep_until(self._path, step)
            self._file = self._path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)  # type: ignore[no-untyped-call]
        except OSError as error:
            raise UserError(f"{run}: the run folder cannot be written ({error})") from error
        self._console = console or Console()
        self._total = total
        self._said = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=total, completed=step)

    def __enter__(self) -> "Journal":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._board.close()  # type: ignore[no-untyped-call]
        with contextlib.suppress(OSError):  # a full disk was reported when the line was written
            self._file.close()

    def say(self, text: str) -> None:
        """A line on the terminal."""
        self._progress.console.print(text, highlight=False, markup=False)

    def step(self, record: dict[str, Any]) -> None:
        """One optimizer step."""
        self._write(record)
        step, loss = record["step"], record["loss"]
        for name in ("loss", "lr", "seconds"):
            self._board.add_scalar(f"train/{name}", record[name], step)  # type: ignore[no-untyped-call]
        text = f"stage {record['stage'] + 1}, epoch {record['epoch'] + 1}, loss {loss:.4f}"
        self._progress.update(self._task, completed=step, description=text)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._said >= PLAIN_INTERVAL or step == self._total):
            self._said = now
            self.say(f"step {step}/{self._total}: {text}, {record['seconds']:.2f} s")

    def validation(self, record: dict[str, Any]) -> None:
        """One validation."""
        self._write(record)
        if record["validation"] is not None:
            self._board.add_scalar("validation/dice", record["validation"], record["step"])  # type: ignore[no-untyped-call]
        for organ, dice in record["dice"].items():
            if dice is not None:
                self._board.add_scalar(f"validation/{organ}", dice, record["step"])  # type: ignore[no-untyped-call]
        score = "no class to score" if record["validation"] is None else f"mean Dice {record['validation']:.4f}"
        self.say(f"step {record['step']}: validation, {score}, {record['seconds']:.1f} s")

    def _write(self, record: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error}); free space, then continue with --resume"
            ) from error


def _keep_until(path: Path, step: int) -> None:
    """Drops the lines after `step`: the resumed run writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # cut off when the run was killed
        if record.get("step", 0) <= step:
            kept.append(line)
    draft = path.with_suffix(".tmp")
    draft.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(draft, path)

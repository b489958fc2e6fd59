"""The journal of a run, kept by rank 0: metrics.jsonl, TensorBoard, and progress on the terminal."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Iterator
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
        self._hook = contextlib.ExitStack()
        self._hook.enter_context(_quiet_background())
        try:
            _keep_until(self._path, step)
            self._file = self._path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)  # type: ignore[no-untyped-call]
        except OSError as error:
            self._hook.close()
            raise UserError(
                f"{run}: the run folder cannot be written ({error}); free space, then continue with --resume"
            ) from error
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
        for close in (self._board.close, self._file.close):
            with contextlib.suppress(OSError):  # a full disk was reported when the line was written
                close()
        self._hook.close()

    def say(self, text: str) -> None:
        """A line on the terminal."""
        self._progress.console.print(text, highlight=False, markup=False)

    def step(self, record: dict[str, Any]) -> None:
        """One optimizer step."""
        self._write(record)
        step, loss = record["step"], record["loss"]
        self._plot({f"train/{name}": record[name] for name in ("loss", "lr", "seconds")}, step)
        text = f"stage {record['stage'] + 1}, epoch {record['epoch'] + 1}, loss {loss:.4f}"
        self._progress.update(self._task, completed=step, description=text)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._said >= PLAIN_INTERVAL or step == self._total):
            self._said = now
            self.say(f"step {step}/{self._total}: {text}, {record['seconds']:.2f} s")

    def validation(self, record: dict[str, Any]) -> None:
        """One validation."""
        self._write(record)
        scores = {"dice": record["validation"], **record["dice"]}
        self._plot({f"validation/{name}": dice for name, dice in scores.items()}, record["step"])
        score = "no class to score" if record["validation"] is None else f"mean Dice {record['validation']:.4f}"
        self.say(f"step {record['step']}: validation, {score}, {record['seconds']:.1f} s")

    def _write(self, record: dict[str, Any]) -> None:
        with self._reported(self._path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()

    def _plot(self, scalars: dict[str, float | None], step: int) -> None:
        """TensorBoard writes behind our back: what failed is raised by a later call."""
        with self._reported(self._path.parent / "tensorboard"):
            for name, value in scalars.items():
                if value is not None:
                    self._board.add_scalar(name, value, step)  # type: ignore[no-untyped-call]

    @contextlib.contextmanager
    def _reported(self, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error}); free space, then continue with --resume") from error


@contextlib.contextmanager
def _quiet_background() -> Iterator[None]:
    """TensorBoard's writing thread prints a traceback of a full disk, which the next call reports anyway."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def _keep_until(path: Path, step: int) -> None:
    """Drops the lines after `step`: the resumed run writes them again."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            done = json.loads(line)["step"] <= step
        except (ValueError, TypeError, LookupError):
            continue  # cut off when the run was killed, or no record
        if done:
            kept.append(line)
    draft = path.with_suffix(".tmp")
    draft.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    os.replace(draft, path)

"""The file that `lampseg calibrate` writes: one entry for each device, number of processes and number of threads."""

import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from lampseg.errors import UserError
from lampseg.hardware.device import Hardware

VERSION = 1


@dataclass(frozen=True)
class Calibration:
    """What was measured, when and with what."""

    hardware: Hardware
    date: str
    torch: str


@dataclass(frozen=True)
class _File:
    version: Literal[1]
    calibrations: tuple[Calibration, ...]


_ADAPTER = TypeAdapter(_File)


def calibration_path() -> Path:
    """LAMPSEG_HARDWARE if set, else hardware.json in the user's cache folder."""
    stated = os.environ.get("LAMPSEG_HARDWARE")
    if stated:
        return Path(stated)
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "lampseg" / "hardware.json"


def is_path(name: str) -> bool:
    """Whether a user who writes this means a file."""
    return name.endswith(".json") or "/" in name or os.sep in name


def read_calibrations(path: Path) -> tuple[Calibration, ...]:
    """All entries.

    Raises:
        UserError: it can't be read, or it is not such a file.
    """
    remedy = f"calibrate again with `lampseg calibrate --out {path}`, or remove the file to use stated presets"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: can't be read as a calibration ({error}); {remedy}") from error
    try:
        content = json.loads(text)
        if isinstance(content, dict) and content.get("version", VERSION) != VERSION:
            raise UserError(f"{path}: is a calibration of version {content['version']}, not {VERSION}; {remedy}")
        file = _ADAPTER.validate_json(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}: is not JSON ({error}); {remedy}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path}: is not a calibration ({where}: {first['msg']}); {remedy}") from error
    for entry in file.calibrations:
        fault = entry.hardware.fault()
        if fault is not None:
            raise UserError(f"{path}: is not a calibration ({fault}); {remedy}")
    return file.calibrations


def write_calibration(made: Calibration, path: Path) -> None:
    """Adds an entry and replaces that of the same device, processes and threads; precisions it lacks are kept.

    Raises:
        UserError: the file can't be written, or what is there is not a calibration.
    """
    entries = list(read_calibrations(path)) if path.exists() else []
    for entry in entries:
        if _key(entry) == _key(made) and entry.torch == made.torch:
            rates = {**entry.hardware.rates, **made.hardware.rates}
            made = replace(made, hardware=replace(made.hardware, rates=rates))
    entries = [entry for entry in entries if _key(entry) != _key(made)]
    text = _ADAPTER.dump_json(_File(1, (*entries, made)), indent=1).decode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, delete=False) as file:
            file.write(text + "\n")
        os.replace(file.name, path)
    except OSError as error:
        raise UserError(f"{path}: the calibration can't be written ({error}); give another place with --out") from error


def find_calibration(*, kind: str, device: str | None, processes: int, threads: int) -> Hardware | None:
    """The stored entry for this device, number of processes and threads of each; None if there is none.

    Raises:
        UserError: there is a file, but it can't be read.
    """
    path = calibration_path()
    if device is None or not path.exists():
        return None
    for entry in read_calibrations(path):
        made = entry.hardware
        if (made.kind, made.name, made.processes, made.threads) == (kind, device, processes, threads):
            return _sourced(entry, path)
    return None


def read_calibration(path: Path, *, kind: str, processes: int, device: str | None = None) -> Hardware:
    """The entry of a file that the user names: of this kind, for this or else the nearest number of processes.

    If it has entries of `device` (as this machine calls its own), one of these.

    Raises:
        UserError: it can't be read or has no entry of this kind.
    """
    entries = [entry for entry in read_calibrations(path) if entry.hardware.kind == kind]
    if not entries:
        raise UserError(f"{path}: holds no calibration of a {kind} device; calibrate on a machine that has one")
    # A file that went from machine to machine begins with the entries of others.
    own = [entry for entry in entries if entry.hardware.name == device] or entries
    return _sourced(min(own, key=lambda entry: abs(entry.hardware.processes - processes)), path)


def _sourced(entry: Calibration, path: Path) -> Hardware:
    made = entry.hardware
    text = f"measured on {entry.date[:10]} with {made.processes} process(es), torch {entry.torch} ({path})"
    return replace(made, source=text)


def _key(entry: Calibration) -> tuple[str, str, int, int]:
    made = entry.hardware
    return made.kind, made.name, made.processes, made.threads

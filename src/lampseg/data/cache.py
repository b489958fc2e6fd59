"""Arrays of preprocessed cases on disk: compressed in chunks, so that a box is read without the rest; and entries of
a cache, which appear whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lampseg.errors import UserError

CHUNK, BLOCK = 64, 16
"""Voxels along each edge: a chunk (1 MiB in float32) is one read of the disk, a block (16 KiB) one decompression."""
SUFFIX = ".b2nd"
RECORD = "case.json"
_PARTIAL = ".partial"


def write_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Writes (X, Y, Z) or (C, X, Y, Z) as a Blosc2 array (.b2nd): byte shuffle and LZ4, lossless.

    Raises:
        OSError: the file cannot be written; a part of it may be there.
    """
    import blosc2  # here: it takes half a second

    edges = array.shape[-3:]
    lead = (1,) * (array.ndim - 3)
    chunks = (*lead, *(min(CHUNK, size) for size in edges))
    blocks = (*lead, *(min(BLOCK, size) for size in edges))
    packing = {
        "codec": blosc2.Codec.LZ4,
        "clevel": 5,
        "filters": [blosc2.Filter.SHUFFLE],
        "filters_meta": [0],
        "nthreads": 1,
    }
    packed = blosc2.asarray(np.ascontiguousarray(array), chunks=chunks, blocks=blocks, cparams=packing)
    with open(path, "wb") as file:  # not by Blosc2, which says less of a full disk
        file.write(packed.to_cframe())
        file.flush()
        os.fsync(file.fileno())


def read_array(path: Path, region: tuple[slice, ...] | None = None) -> npt.NDArray[Any]:
    """The array, or a box of it (slices along X, Y and Z; all channels), of which only the chunks are read.

    Raises:
        UserError: the file is missing or damaged.
    """
    import blosc2

    try:
        stored = blosc2.open(str(path), mode="r", dparams={"nthreads": 1})
        ends = [slice(0, size) for size in stored.shape]
        box = ends if region is None else [*ends[: len(ends) - 3], *region]
        out: npt.NDArray[Any] = np.asarray(stored[tuple(box)])
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{path}: the preprocessed volume cannot be read ({error}); delete its folder, and it is prepared again"
        ) from error
    return out


def entry_folder(folder: Path, name: str, key: Mapping[str, Any]) -> Path:
    """Where the entry of this name and key lies, or will lie; those of other keys lie beside it."""
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder / f"{name}-{digest[:16]}"


def read_entry(folder: Path, name: str, key: Mapping[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """The entry's folder and what `write_entry` noted; None if it is not there or not whole."""
    entry = entry_folder(folder, name, key)
    try:
        noted = json.loads((entry / RECORD).read_text(encoding="utf-8"))
        # A copy of the cache, or a machine that crashed, may have cut files short.
        whole = noted["key"] == key and all((entry / f).stat().st_size == n for f, n in noted["bytes"].items())
        return (entry, dict(noted["facts"])) if whole else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write_entry(folder: Path, name: str, key: Mapping[str, Any], fill: Callable[[Path], Mapping[str, Any]]) -> None:
    """Calls `fill` with an empty folder, notes the facts that it returns, and renames the folder to the entry's name.

    Whoever is killed leaves at most a folder `.NAME.HOST.PID.*.partial`, which the next call of `remove_remains` takes
    away. Of two that write one entry at a time, the first to be ready wins; both are equal.

    Raises:
        OSError: it cannot be written; what `fill` raises. Nothing is left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entry = entry_folder(folder, name, key)
    partial = folder / f".{entry.name}.{_host()}.{os.getpid()}.{uuid.uuid4().hex[:8]}{_PARTIAL}"
    partial.mkdir()
    try:
        facts = fill(partial)
        sizes = {path.name: path.stat().st_size for path in partial.iterdir()}
        with open(partial / RECORD, "w", encoding="utf-8") as file:
            json.dump({"key": key, "facts": facts, "bytes": sizes}, file)
            file.flush()
            os.fsync(file.fileno())
        _put(partial, entry, whole=lambda: read_entry(folder, name, key) is not None)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_remains(folder: Path) -> None:
    """Takes away what killed processes of this machine have left half done."""
    with contextlib.suppress(OSError):
        for partial in folder.glob(f".*{_PARTIAL}"):
            host, pid = partial.name.removesuffix(_PARTIAL).rsplit(".", 3)[1:3]
            if host == _host() and pid.isdecimal() and not _alive(int(pid)):
                shutil.rmtree(partial, ignore_errors=True)


def _put(partial: Path, entry: Path, *, whole: Callable[[], bool]) -> None:
    """Renames; an entry that is there and not whole makes way."""
    damaged = partial.with_name(f"{partial.name.removesuffix(_PARTIAL)}-damaged{_PARTIAL}")
    while True:
        try:
            partial.rename(entry)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if whole():
            return  # another process was faster
        with contextlib.suppress(FileNotFoundError):
            entry.rename(damaged)
        shutil.rmtree(damaged, ignore_errors=True)


def _host() -> str:
    return "".join(c if c.isalnum() else "-" for c in socket.gethostname()) or "host"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

"""Probabilities of every class on the network's grid, in a compressed file that is written and read plane by plane.

An ordinary NumPy .npz archive: `classes` (names), `affine` and `shape` of the network's grid, `input_affine` and
`input_shape` of the image's, and `planes_00000`, `planes_00008`, ...: float16 (C, planes, Y, Z), named after the first
plane along X. `np.load` reads of it what is asked for, no more.
"""

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from lampseg.data.grid import GridInfo
from lampseg.data.volume import remove_if_there
from lampseg.errors import UserError

SUFFIX = ".probabilities.npz"
PLANES = 8
"""Of one entry, at most."""


class ProbabilityFile:
    """A file to which planes are added in order; it appears when it is complete.

    Raises:
        UserError: it can't be written.
    """

    def __init__(self, path: Path, *, info: GridInfo, classes: Sequence[str]) -> None:
        self.path = path
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._next, self._planes = 0, info.shape[0]
        self._archive: zipfile.ZipFile | None = None
        self._abandoned = False
        self._facts = {
            "classes": np.array(classes),
            "affine": info.affine,
            "shape": np.array(info.shape),
            "input_affine": info.input_affine,
            "input_shape": np.array(info.input_shape),
        }

    def __enter__(self) -> "ProbabilityFile":
        try:
            self._archive = zipfile.ZipFile(self._partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        except OSError as error:
            raise self._cannot(error) from error
        for name, value in self._facts.items():
            self._write(name, value)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._archive is not None
        try:
            self._archive.close()
            if kind is None and not self._abandoned:
                assert self._next == self._planes, f"{self._next} of {self._planes} planes were added"
                os.replace(self._partial, self.path)
        except OSError as failure:
            raise self._cannot(failure) from failure
        finally:
            remove_if_there(self._partial)

    def add(self, probabilities: Tensor, first: int) -> None:
        """Adds planes (C, n, Y, Z) that begin with plane `first`; those that were added before are left out."""
        done = self._next - first
        assert done >= 0, "planes come in order"
        for begin in range(done, probabilities.shape[1], PLANES):
            planes = probabilities[:, begin : begin + PLANES].cpu().numpy().astype(np.float16)
            self._write(f"planes_{self._next:05d}", planes)
            self._next += planes.shape[1]

    def abandon(self) -> None:
        """Nothing shall appear at the end."""
        self._abandoned = True

    def _write(self, name: str, value: npt.NDArray[Any]) -> None:
        assert self._archive is not None
        try:
            with self._archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, np.ascontiguousarray(value), allow_pickle=False)
        except OSError as error:
            raise self._cannot(error) from error

    def _cannot(self, error: OSError) -> UserError:
        remove_if_there(self._partial)
        return UserError(f"{self.path}: cannot be written ({error}); free disk space or choose another folder")


def read_probabilities(path: Path, planes: slice | None = None) -> npt.NDArray[np.float16]:
    """Probabilities (C, X, Y, Z), or some planes along X of them, from a file that `predict --probabilities` wrote.

    Raises:
        UserError: it is no such file.
    """
    try:
        with np.load(path) as archive:
            begin, end, _ = (planes or slice(None)).indices(int(archive["shape"][0]))
            starts = sorted(int(name.removeprefix("planes_")) for name in archive.files if name.startswith("planes_"))
            wanted = [n for n, after in zip(starts, [*starts[1:], end]) if n < end and after > begin]
            parts = [archive[f"planes_{n:05d}"] for n in wanted]
            if not parts:
                return np.zeros((len(archive["classes"]), 0, *archive["shape"][1:]), np.float16)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not a file of probabilities ({error}); `predict --probabilities` writes them"
        ) from error
    found: npt.NDArray[np.float16] = np.concatenate(parts, axis=1)[:, begin - wanted[0] : end - wanted[0]]
    return found

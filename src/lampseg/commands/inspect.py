"""`inspect`: the fingerprint of a dataset, what it shows, and the memory that its largest volume takes."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lampseg.config import DataConfig, NetworkConfig
from lampseg.data import Case, Dataset, read_dataset
from lampseg.data.dataset import format_of
from lampseg.data.dicom.dataset import read_dicom_dataset
from lampseg.data.dicom.series import is_dicom
from lampseg.data.fingerprint.case_figures import CaseHeader, read_header
from lampseg.data.fingerprint.case_pool import default_jobs, measure_cases
from lampseg.data.fingerprint.fingerprint import Fingerprint, Measured, fingerprint_json, make_fingerprint, sample_size
from lampseg.data.fingerprint.notes import fingerprint_notes
from lampseg.data.headers import network_shape
from lampseg.errors import UserError

if TYPE_CHECKING:
    from lampseg.training.whole_volume import Need  # torch is imported when it is known that there is a use for it

FAULTY = 3
"""Exit code if a case could not be read."""
Triple = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Inspection:
    """Everything that `inspect` found."""

    root: Path
    fingerprint: Fingerprint
    notes: tuple[str, ...]
    faulty: dict[str, str]
    """Why a case could not be measured, by its id."""
    spacing: tuple[float, float, float] | None
    """As asked for."""
    largest: Triple
    """The largest volume at that spacing, or on its own grid."""
    largest_each: Triple
    """Per axis the largest size among the training cases on that grid: what `lampseg plan` plans for."""
    needs: "tuple[Need, ...]"
    """Of `largest`."""

    def as_json(self) -> str:
        """One object; docs/how-to/inspect-your-data.md explains the keys."""
        from lampseg.training.whole_volume import MEMORIES

        largest = self.fingerprint.largest
        tree: dict[str, Any] = {
            **fingerprint_json(self.fingerprint),
            "largest": {
                "id": largest.case.id,
                "own_shape": largest.header.shape,
                "spacing": self.spacing,
                "shape": self.largest,
                "largest_of_each_axis": self.largest_each,
            },
            "memory": [
                {**asdict(need), "devices": {f"{size}GiB": need.devices(size) for size in MEMORIES}}
                for need in self.needs
            ],
            "notes": list(self.notes),
            "faulty": [
                {"id": case_id, "error": without_paths(message, self.root)}
                for case_id, message in sorted(self.faulty.items())
            ],
        }
        return json.dumps(tree, indent=1)


def inspect(
    root: Path,
    *,
    format: str = "auto",
    jobs: int | None = None,
    networks: Sequence[str] | None = None,
    spacing: tuple[float, float, float] | None = None,
    console: Console | None = None,
) -> Inspection:
    """Reads the headers of all cases, then the voxels, a few volumes at a time.

    Args:
        root: a dataset's folder, or a folder of DICOM series (each a case; RTSTRUCT files hold the labels).
        format: as `data.format`, or `dicom`; `auto` takes a folder that is no dataset, but holds DICOM, for the latter.
        jobs: processes, each with one volume in memory; None: the processors, but at most 4.
        networks: whose memory is told, such as unet-32; None: U-Net and SE-U-Net with 32, 64 and 128 filters.
        spacing: mm, RAS order, to which the largest volume is resampled; None: its own grid.
        console: shows the progress; None shows none.

    Raises:
        UserError: no dataset there; none of its cases can be read; impossible options.
    """
    root = Path(root)
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs: {jobs} is not a number of processes above 0")
    if spacing is not None and not all(0 < edge < float("inf") for edge in spacing):
        raise UserError(f"--spacing: {list(spacing)} is not three sizes in mm above 0")
    chosen = _networks(networks)
    dataset, faulty = _dataset(root, format)
    data = DataConfig(root=root, spacing=spacing)
    parts = {case.id: "training" for case in dataset.training} | {case.id: "test" for case in dataset.test}
    cases = [*dataset.training, *dataset.test]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=console is None) as progress:
        headers = _headers(cases, faulty, progress.track(cases, description="headers"))
        readable = [case for case in cases if case.id in headers]
        sampled = sample_size(len(readable))
        bar = progress.add_task("voxels", total=len(readable))
        outcomes = measure_cases(
            readable,
            classes=dataset.classes,
            sample=sampled,
            jobs=jobs or default_jobs(),
            on_case=lambda: progress.advance(bar),
        )
        faulty |= {case.id: outcome for case, outcome in zip(readable, outcomes) if isinstance(outcome, str)}
        measured = [
            Measured(case, parts[case.id], headers[case.id], outcome)
            for case, outcome in zip(readable, outcomes)
            if not isinstance(outcome, str)
        ]
        if not measured:
            name, reason = next(iter(faulty.items()), ("", "it lists none"))
            raise UserError(f"{root}: none of its {len(faulty)} case(s) can be read; {name}: {reason}")
        found = make_fingerprint(
            dataset.name, classes=dataset.classes, channels=dataset.channels, measured=measured, sampled=sampled
        )
        largest, each = _largest(found, data)
        needed = []
        if chosen:
            from lampseg.training.whole_volume import needs

            bar = progress.add_task("networks", total=2 * len(chosen))
            channels = found.largest.header.channels
            for need in needs(chosen, shape=largest, channels=channels, classes=len(dataset.classes)):
                needed.append(need)
                progress.advance(bar)
    notes = tuple(fingerprint_notes(found))
    return Inspection(root, found, notes, faulty, spacing, largest, each, tuple(needed))


def write_inspection(found: Inspection, out: Path) -> None:
    """Writes the JSON form to a file.

    Raises:
        UserError: it can't be written.
    """
    from lampseg.evaluation.tables import write_text

    write_text(out, found.as_json() + "\n")


def without_paths(message: str, root: Path) -> str:
    """A message without the names of files and folders of a DICOM export, which may name a patient."""
    if not is_dicom(root):
        return message
    for path in sorted(map(str, root.rglob("*")), key=len, reverse=True):
        message = message.replace(path, "FILE")
    return message.replace(str(root), "FOLDER")


def _networks(names: Sequence[str] | None) -> tuple[tuple[str, NetworkConfig], ...]:
    if names is not None and not names:
        return ()
    from lampseg.training.whole_volume import DEFAULT, parse_networks

    return parse_networks(DEFAULT if names is None else names)


def _dataset(root: Path, format: str) -> tuple[Dataset, dict[str, str]]:
    if format == "dicom":
        return read_dicom_dataset(root)
    if format == "auto" and format_of(root) is None and is_dicom(root):
        return read_dicom_dataset(root)
    return read_dataset(root, format=format), {}


def _headers(cases: Sequence[Case], faulty: dict[str, str], listed: Any) -> dict[str, CaseHeader]:
    """By id; those that can't be read are added to `faulty`."""
    found = {}
    for case in listed:
        try:
            found[case.id] = read_header(case)
        except UserError as error:
            faulty[case.id] = str(error)
    return found


def _largest(found: Fingerprint, data: DataConfig) -> tuple[Triple, Triple]:
    """The volume of most voxels on the network's grid, and per axis the largest size of the training cases."""
    if data.spacing is None:
        shapes = {case.case.id: case.header.shape for case in found.measured}
    else:
        shapes = {case.case.id: network_shape(case.case.images, data=data) for case in found.measured}
    training = [case for case in found.measured if case.part == "training"] or list(found.measured)
    x, y, z = (max(sizes) for sizes in zip(*(shapes[case.case.id] for case in training)))
    return max(shapes.values(), key=math.prod), (x, y, z)

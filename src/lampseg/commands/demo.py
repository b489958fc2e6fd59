"""`demo`: the main job on the phantom, and what it measured: whole volumes against sliding windows."""

import json
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lampseg.commands.predict import RECORD, PredictOptions, predict
from lampseg.commands.run_folder import check_writable
from lampseg.commands.train import train
from lampseg.config import Config, dump_config, parse_config
from lampseg.data import Dataset, write_phantom
from lampseg.errors import UserError
from lampseg.evaluation import Comparison, ComparisonRow, SliceView, evaluate, write_report
from lampseg.evaluation.report.case_files import find_cases
from lampseg.evaluation.tables import write_text
from lampseg.parallel.devices import parse_devices

WINDOW = (-160.0, 240.0)
"""HU; the paper's liver window would clip fat and bone, by which a head is recognised."""


@dataclass(frozen=True)
class Scale:
    """How much of everything the demo does."""

    cases: int
    test: int
    filters: int
    steps: tuple[int, int, int]


SCALES = {
    "full": Scale(cases=24, test=6, filters=32, steps=(300, 150, 50)),
    "tiny": Scale(cases=4, test=2, filters=4, steps=(2, 2, 2)),
}
PATCHES = (16, 32)


def demo_config(data: Path, *, scale: Scale, devices: int | str) -> Config:
    """The demo's configuration: the paper's curriculum, in phantom size."""
    small, medium, whole = scale.steps
    return parse_config(
        {
            "network": {"name": "unet", "filters": scale.filters, "norm": "instance", "depth": 2},
            "data": {"root": str(data), "window": list(WINDOW), "validation": 0.17},
            "curriculum": [
                {"patch": PATCHES[0], "batch": 16, "micro_batches": 4, "steps": small, "lr": 1e-3},
                {"patch": PATCHES[1], "batch": 8, "micro_batches": 4, "steps": medium, "lr": 1e-3},
                {"patch": "whole", "batch": 2, "steps": whole, "lr": 5e-4},
            ],
            # The paper's way; left to choose, the planner would give each device a copy of so small a network.
            "parallel": {"devices": devices, "mode": "pipeline"},
        },
        source="demo",
    )


def demo(out: Path, *, devices: int | str = 2, scale: str = "full") -> Path:
    """Writes the phantom, trains on it, segments the test cases in three ways, and reports.

    Returns:
        The path of the HTML report.

    Raises:
        UserError: `out` is not empty or can't be written, no such scale or devices.
    """
    if scale not in SCALES:
        raise UserError(f"--scale: {scale!r} is not known; choose {' or '.join(SCALES)}")
    parse_devices(devices)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is not an empty folder; remove it or choose another --out")
    check_writable(out, option="--out")
    console = Console()
    size = SCALES[scale]
    console.rule("phantom")
    dataset = write_phantom(out / "data", cases=size.cases, seed=0, test=size.test)
    config = demo_config(out / "data", scale=size, devices=devices)
    write_text(out / "config.yaml", dump_config(config))
    console.print(
        f"{len(dataset.training)} training and {len(dataset.test)} test cases in {out / 'data'}", markup=False
    )
    console.rule("curriculum")
    train(config, run=out / "run")
    console.rule("test cases")
    comparison = compare(dataset, run=out / "run", out=out)
    comparison.write(out)
    console.print(comparison.table())
    text = conclusion(comparison)
    write_text(out / "conclusion.txt", text + "\n")
    console.print(text, markup=False, highlight=False)
    predictions = out / "predictions-whole"
    cases = find_cases(predictions, dataset.root)
    report = write_report(
        out / "run",
        comparison=comparison,
        slices=_slices(dataset, predictions=predictions),
        cases=cases,
        viewer=[cases[0].name],
    )
    console.print(f"report: {report}", markup=False, highlight=False)
    return report


def compare(dataset: Dataset, *, run: Path, out: Path) -> Comparison:
    """Segments the test cases whole, and with sliding windows of the first stage's patch, and scores all."""
    images = [case.image for case in dataset.test]
    window = (PATCHES[0],) * 3
    ways = (
        ("whole volume, final weights", "whole", PredictOptions("best")),
        (f"{PATCHES[0]}^3 windows, final weights", "windows", PredictOptions("best", window, 0.5)),
        (f"{PATCHES[0]}^3 windows, weights after stage 1", "windows-stage-1", PredictOptions("stage-1", window, 0.5)),
    )
    rows = []
    for label, name, options in ways:
        folder = out / f"predictions-{name}"
        predict(run, images, out=folder, options=options)
        evaluation = evaluate(folder, dataset.root, out=out / f"evaluation-{name}")
        rows.append(ComparisonRow(label, evaluation, seconds_per_volume(folder)))
    return Comparison(tuple(rows))


def seconds_per_volume(predictions: Path) -> float:
    """Mean over the volumes of a `predict`; the first, which warms the processes up, left out if there are more."""
    seconds = [item["seconds"] for item in json.loads((predictions / RECORD).read_text())["predictions"]]
    later = seconds[1:] or seconds
    return float(sum(later) / len(later))


def conclusion(comparison: Comparison) -> str:
    """What came out, in words that follow from the numbers."""
    whole, windows, small = comparison.rows

    def dice(row: ComparisonRow) -> float:
        return 100 * (row.evaluation.average or 0.0)

    more = "more" if dice(whole) > dice(windows) else "not more"
    gain = "gained" if dice(whole) > dice(small) else "did not gain"
    ratio = windows.seconds_per_volume / max(whole.seconds_per_volume, 1e-9)
    return (
        f"Mean Dice on the test cases: {dice(whole):.1f} % for whole volumes, {dice(windows):.1f} % for windows of the "
        f"first stage's patch with the same weights ({more} with the whole volume in view), {dice(small):.1f} % for "
        f"such windows with the weights after the first stage (the later stages {gain} accuracy). "
        f"A whole volume took {whole.seconds_per_volume:.2f} s, by windows {windows.seconds_per_volume:.2f} s: "
        f"{ratio:.1f} times as long."
    )


def _slices(dataset: Dataset, *, predictions: Path) -> list[SliceView]:
    case = dataset.test[0]
    assert case.label is not None
    return [
        SliceView.from_files(
            case.image,
            case.label,
            predictions / f"{case.id}.nii.gz",
            title=f"{case.id}: {organ}",
            class_names=dataset.classes,
            organ=organ,
            window=WINDOW,
        )
        for organ in ("Parotid_L", "OpticNerve_R")
        if organ in dataset.classes
    ]

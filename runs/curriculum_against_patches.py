"""Does the curriculum beat small patches alone? The demo's run against as many steps on its first stage's patch.

    .venv/bin/python runs/curriculum_against_patches.py --out demo-against-patches

Trains twice on the same phantom with the same number of steps, segments the test cases (the curriculum's model whole;
the other both whole and by windows of its patch), and writes benchmarks/results/curriculum_against_patches.md.
"""

import argparse
import os
import platform
import time
from pathlib import Path

from lampseg.commands.demo import PATCHES, SCALES, demo_config, seconds_per_volume
from lampseg.commands.predict import PredictOptions, predict
from lampseg.commands.train import train
from lampseg.config import Config, StageConfig
from lampseg.data import write_phantom
from lampseg.evaluation import Evaluation, evaluate
from lampseg.version import __version__

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"


def patches_alone(config: Config) -> Config:
    """As many steps, all of them with the first stage's patch, batch and learning rate."""
    first = config.curriculum[0]
    steps = sum(stage.steps or 0 for stage in config.curriculum)
    stage = StageConfig(**{**first.model_dump(exclude={"steps"}), "steps": steps})
    return config.model_copy(update={"curriculum": (stage,)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--devices", default="2")
    parser.add_argument("--scale", default="full", choices=sorted(SCALES))
    arguments = parser.parse_args()
    out: Path = arguments.out
    scale = SCALES[arguments.scale]
    dataset = write_phantom(out / "data", cases=scale.cases, seed=0, test=scale.test)
    images = [case.image for case in dataset.test]
    curriculum = demo_config(out / "data", scale=scale, devices=arguments.devices)
    small = patches_alone(curriculum)
    window = (PATCHES[0],) * 3
    rows: list[tuple[str, Evaluation, float, float]] = []
    for name, config in (("curriculum", curriculum), ("patches", small)):
        begun = time.perf_counter()
        train(config, run=out / name)
        seconds = time.perf_counter() - begun
        for way, options in (("whole", PredictOptions()), ("windows", PredictOptions(window=window, overlap=0.5))):
            folder = out / f"{name}-{way}"
            predict(out / name, images, out=folder, options=options)
            found = evaluate(folder, dataset.root, out=out / f"{name}-{way}-scores")
            rows.append((f"{name}, {way}", found, seconds_per_volume(folder), seconds))
    organs = rows[0][1].organs
    lines = [
        "# The curriculum against small patches alone",
        "",
        "`python runs/curriculum_against_patches.py` on the phantom (seed 0), "
        f"{scale.cases} training and {scale.test} test cases, {sum(scale.steps)} steps each, "
        f"{arguments.devices} processes, lampseg {__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{time.strftime('%Y-%m-%d')}. Dice in %, mean over the test cases.",
        "",
        "| training, segmentation | average | " + " | ".join(organs) + " | s per volume | training, s |",
        "|" + "---|" * (len(organs) + 4),
    ]
    for label, found, per_volume, training in rows:
        dice = [found.average, *(organ.mean for organ in found.per_organ)]
        cells = ["-" if value is None else f"{100 * value:.1f}" for value in dice]
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {per_volume:.2f} | {training:.0f} |")
    RESULTS.mkdir(parents=True, exist_ok=True)
    if arguments.scale == "full":
        (RESULTS / "curriculum_against_patches.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()

"""A run folder, a comparison and a slice view as the program leaves them, small, for the tests of the report."""

import json
from pathlib import Path

import numpy as np

from lampseg.evaluation import Comparison, ComparisonRow, Evaluation, SliceView

NAMES = ("background", "BrainStem", "Chiasm", "Parotid_<L>")
MIB = 2**20
PATCHES = ([32, 32, 32], [48, 48, 40])


def step_line(step: int, stage: int, **other: object) -> str:
    record = {
        "step": step,
        "stage": stage,
        "epoch": step // 4,
        "loss": 1.0 / step + stage,
        "seconds": 0.5 + stage,
        "patch": PATCHES[stage],
        "peak_memory_bytes": [(100 + step) * MIB, 90 * MIB],
        "busy_seconds": [0.3, 0.1],
        "lr": 0.001,
    }
    return json.dumps(record | other)


def validation_line(step: int, stage: int, score: float | None) -> str:
    dice = {"BrainStem": score, "Chiasm": None, "Parotid_<L>": score}
    return json.dumps({"step": step, "stage": stage, "validation": score, "dice": dice, "seconds": 3.0})


def plan_stage(index: int, *, share: float) -> dict[str, object]:
    return {
        "index": index,
        "first": 41 * index,
        "last": 41 * index + 40,
        "modules": ["stem", "down.0"] if index == 0 else ["up.0", "tail"],
        "parameters": 1_500_000,
        "parameter_bytes": 6 * MIB,
        "gradient_bytes": 6 * MIB,
        "optimizer_bytes": 7 * MIB,
        "activation_bytes": 20 * MIB,
        "in_flight": 2 - index,
        "receive_bytes": index * MIB,
        "send_bytes": 2 * MIB,
        "peak_bytes": 70 * MIB,
        "flops": 1e9,
        "time_share": share,
        "something_new": 1,
    }


def make_run(folder: Path) -> Path:
    """Two curriculum stages of 20 and 10 steps on two devices, killed while writing step 31."""
    folder.mkdir()
    lines = [step_line(i, 0) for i in range(1, 21)] + [validation_line(20, 0, 0.4)]
    lines += [step_line(i, 1) for i in range(21, 31)] + [validation_line(25, 1, 0.62), validation_line(30, 1, 0.5)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n" + step_line(31, 1)[:40])
    plan = {
        "version": 1,
        "network": "unet",
        "micro_batches": 4,
        "schedule": "1f1b",
        "recompute": "none",
        "precision": "float32",
        "operations": 82,
        "cuts": [41],
        "stages": [plan_stage(0, share=0.55), plan_stage(1, share=0.45)],
    }
    plans = [plan | {"input_shape": [1, 1, *patch]} for patch in PATCHES]
    (folder / "plan.json").write_text(json.dumps({"version": 1, "plans": plans}))
    (folder / "config.yaml").write_text(
        "network: {name: unet, filters: 8}\n"
        "curriculum:\n- {patch: 32, steps: 20}\n- {patch: whole, steps: 10}\n- {patch: whole, steps: 5}\n"
        "data: {root: '<script>alert(1)</script>'}\n"
    )
    (folder / "environment.json").write_text(json.dumps({"torch": "2.13.0", "host": "<b>&"}))
    (folder / "best.json").write_text(json.dumps({"step": 25, "validation": 0.62}))
    return folder


def comparison() -> Comparison:
    whole = Evaluation.from_cases({"a": (0.9, 0.5, 0.8), "b": (0.8, None, 0.6)}, class_names=NAMES)
    window = Evaluation.from_cases({"a": (0.7, 0.6, 0.5), "b": (0.5, None, 0.5)}, class_names=NAMES)
    rows = (ComparisonRow("whole volume", whole, 0.5), ComparisonRow("_sliding window $32$", window, 4.25))
    return Comparison(rows)


def slice_view() -> SliceView:
    """The organ 1 is a box on the patient's right (high x); the prediction is one voxel off along y."""
    truth = np.zeros((20, 16, 12), np.uint8)
    truth[12:17, 4:9, 3:8] = 1
    truth[2:4, 2:4, 9:11] = 2
    image = np.random.default_rng(0).normal(size=truth.shape).astype(np.float32)
    prediction = np.roll(np.where(truth == 1, truth, 0), 1, axis=1)
    return SliceView("case <a>", image, truth, prediction, NAMES, (1.0, 1.5, 2.0))

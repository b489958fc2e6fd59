"""A run folder, a comparison and a slice view as the program leaves them, small, for the tests of the report."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lampseg.evaluation import Comparison, ComparisonRow, Evaluation, SliceView
from lampseg.partition import Choices, Plan, Stage, plans_to_json
from lampseg.partition.plan import Alternative, DeviceLoad, Link

NAMES = ("background", "BrainStem", "Chiasm", "Parotid_<L>")
MIB = 2**20
COUNTED = (1, 2, 3, 21, 22, 23)
"""The steps of which the tensors are counted: the first three of each curriculum stage."""
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
        "stage_seconds": [{"0": [0.1, 0.2]}, {"1": [0.04, 0.06]}],
        "lr": 0.001,
    }
    if step in COUNTED:
        record["tensor_peak_bytes"] = [(95 + step) * MIB, 82 * MIB]
        record |= {"seconds": 3.0, "busy_seconds": [2.0, 2.0]}  # counting takes time
    return json.dumps(record | other)


def validation_line(step: int, stage: int, score: float | None) -> str:
    dice = {"BrainStem": score, "Chiasm": None, "Parotid_<L>": score}
    return json.dumps({"step": step, "stage": stage, "validation": score, "dice": dice, "seconds": 3.0})


def stage(index: int, *, device: int, forward: float) -> Stage:
    return Stage(
        index=index,
        device=device,
        first=41 * index,
        last=41 * index + 40,
        begins="conv3d @ stem",
        modules=("stem", "down.0") if index == 0 else ("up.0", "tail"),
        recompute="none",
        parameters=1_500_000,
        parameter_bytes=6 * MIB,
        gradient_bytes=6 * MIB,
        optimizer_bytes=7 * MIB,
        activation_bytes=20 * MIB,
        in_flight=2 - index % 2,
        receive_bytes=index * MIB,
        send_bytes=2 * MIB,
        extra_bytes=MIB,
        flops=1e9,
        forward_seconds=forward,
        backward_seconds=2 * forward,
    )


def load(index: int, *, activations: int, busy: float) -> DeviceLoad:
    """99 MiB of tensors and 10 MiB of libraries, if the activations are 70 MiB."""
    parts = {"parameter": 6, "gradient": 6, "optimizer": 7, "activation": activations, "boundary": 4, "temporary": 6}
    return DeviceLoad(
        index=index,
        memory_bytes=None,
        **{f"{name}_bytes": count * MIB for name, count in parts.items()},
        library_bytes=10 * MIB,
        peak_bytes=(sum(parts.values()) + 10) * MIB,
        busy_seconds=busy,
    )


def make_plan(patch: Sequence[int], *, replicas: int = 1) -> Plan:
    """Two devices, two stages, 1F1B, two micro-batches of each replica."""
    return Plan(
        network="unet",
        input_shape=(1, 1, *patch),
        precision="float32",
        operations=82,
        digest="digest",
        hardware="stated preset cpu",
        choices=Choices(2, replicas, 2 * replicas, "1f1b", (41,), ("none", "none")),
        stages=(stage(0, device=0, forward=0.055), stage(1, device=1, forward=0.045)),
        devices=(load(0, activations=70, busy=0.33), load(1, activations=51, busy=0.27)),
        links=(Link(0, 1, 1, MIB, 0.001),),
        step_seconds=0.4,
        bubble=0.3,
        alternatives=(Alternative("1 device <i>", 0.8, 300.0 * MIB, "twice as slow"),),
    )


def make_run(folder: Path) -> Path:
    """Two curriculum stages of 20 and 10 steps on two devices, killed while writing step 31."""
    folder.mkdir()
    lines = [step_line(i, 0) for i in range(1, 21)] + [validation_line(20, 0, 0.4)]
    lines += [step_line(i, 1) for i in range(21, 31)] + [validation_line(25, 1, 0.62), validation_line(30, 1, 0.5)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n" + step_line(31, 1)[:40])
    (folder / "plan.json").write_text(plans_to_json([make_plan(patch) for patch in PATCHES]))
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

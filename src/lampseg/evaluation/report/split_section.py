"""The report's section on the split: for each curriculum stage its plan, beside what was measured."""

from pathlib import Path

from lampseg.evaluation.report.parts import FoldPart, Part, Section, TablePart, TextPart, picture
from lampseg.evaluation.report.plan_check import PlanCheck, difference_text, shares
from lampseg.evaluation.report.plan_figures import memory_picture, modules_text, timetable_picture
from lampseg.evaluation.report.run_folder import RunFolder, read_run
from lampseg.evaluation.tables import ABSENT, bytes_text, seconds_text
from lampseg.partition.plan import Plan, describe_choices

OPEN = 3
"""Alternatives that are shown at once; more are folded away."""
DRAWN = 20_000
"""Passes of a timetable that are drawn at most."""


def split_section(run: RunFolder) -> Section:
    """Everything about the plans of a run; why there are none, if their file cannot be read."""
    parts: list[Part] = [TextPart(run.plan_fault)] if run.plan_fault else []
    for stage, plan in enumerate(run.plans):
        check = PlanCheck(plan, run.measured(stage))
        parts += [
            TextPart(f"Curriculum stage {stage + 1}: {run.patch_text(stage)}", "heading"),
            TextPart(_words(check, run, stage)),
            picture(
                memory_picture(check),
                "What each device holds at its peak by the plan, and its share of the computing time.",
                alt="Memory and share of time of each device; the values are in the tables below.",
            ),
            _memory_table(check),
            _time_table(check),
        ]
        if plan.choices.devices > 1:
            parts += [_stage_table(check), *_timetable(plan)]
        if plan.alternatives:
            parts.append(_alternatives(plan))
    return Section("Split over devices", parts)


def plan_lines(run: Path) -> list[str]:
    """For each curriculum stage of a run that has begun: prediction and measurement in one line.

    Raises:
        UserError: not a run folder, or a file in it cannot be understood.
    """
    folder = read_run(run)
    checks = [PlanCheck(plan, folder.measured(stage)) for stage, plan in enumerate(folder.plans)]
    return [f"curriculum stage {i}: {check.line()}" for i, check in enumerate(checks, start=1) if check.measured.steps]


def _words(check: PlanCheck, run: RunFolder, stage: int) -> str:
    plan = check.plan
    shape = " x ".join(map(str, plan.input_shape))
    text = (
        f"Input {shape} (samples, channels, voxels) in each micro-batch: {describe_choices(plan.choices)}, "
        f"{plan.precision}; the devices idle for {plan.bubble:.0%} of the pipeline's time. "
        f"Prediction and measurement: {check.line()}. Times are predicted with these speeds: {plan.hardware}."
    )
    sizes = {step.patch for step in run.steps if step.stage == stage and step.patch}
    if any(size != plan.input_shape[2:] for size in sizes):
        text += " The plan is for the largest size that the training volumes have along each axis; steps were smaller."
    return text


def _memory_table(check: PlanCheck) -> TablePart:
    loads = check.plan.devices
    rows = [
        [
            str(load.index),
            *(bytes_text(nbytes) for name, nbytes in load.parts().items() if name != "libraries"),
            bytes_text(load.tensor_bytes),
            bytes_text(measured),
            difference_text(measured, load.tensor_bytes),
            bytes_text(load.library_bytes),
            bytes_text(load.memory_bytes),
        ]
        for load, measured in zip(loads, check.tensor_bytes)
    ]
    names = [name for name in loads[0].parts() if name != "libraries"]
    header = ["device", *names, "tensors, predicted", "measured", "difference", "libraries", "memory it has"]
    note = (
        "Parts of the predicted peak, at its moment. Measured: the most bytes of tensors alive at once"
        f"{', on the worst of the replicas' if check.plan.choices.replicas > 1 else ''}; on CUDA it includes the "
        "workspaces of convolutions, which the plan counts under libraries."
    )
    return TablePart(header, rows, note=note)


def _time_table(check: PlanCheck) -> TablePart:
    loads = check.plan.devices
    planned, found = shares([load.busy_seconds for load in loads]), shares(check.busy_seconds)
    rows = [
        [
            str(load.index),
            seconds_text(load.busy_seconds),
            seconds_text(measured),
            difference_text(measured, load.busy_seconds),
            _percent(planned[i]),
            _percent(found[i]),
        ]
        for i, (load, measured) in enumerate(zip(loads, check.busy_seconds))
    ]
    header = ["device", "busy in a step, predicted", "measured", "difference", "share, predicted", "measured"]
    note = (
        f"Measured: median of {check.measured.timed} steps, with reading the input and the optimizer's part left out."
    )
    return TablePart(header, rows, note=note if check.measured.busy_seconds else "")


def _stage_table(check: PlanCheck) -> TablePart:
    rows = []
    for stage, measured in zip(check.plan.stages, check.stage_seconds):
        times = zip(check.predicted_seconds(stage.index), measured or (None, None))
        rows.append(
            [
                f"{stage.index}: {modules_text(stage, limit=40)}",
                str(stage.device),
                f"{stage.parameters:,}",
                f"{stage.in_flight} x {bytes_text(stage.activation_bytes)}",
                stage.recompute,
                *(seconds_text(seconds) for pair in times for seconds in pair),
            ]
        )
    header = ["stage", "device", "weights", "activations", "recompute"]
    header += ["forwards, predicted", "measured", "backwards, predicted", "measured"]
    note = "Times of all micro-batches of a step; activations of one, times how many are in flight at most."
    return TablePart(header, rows, note=note)


def _timetable(plan: Plan) -> list[Part]:
    passes = 2 * plan.choices.share * plan.choices.stages
    if passes > DRAWN:
        return [TextPart(f"The timetable of a step is not drawn: it has {passes:,} passes.")]
    return [
        picture(
            timetable_picture(plan),
            "The timetable of a step by the plan: forwards and backwards of the micro-batches.",
            alt="Which pass each device runs when; gaps are idle time.",
        )
    ]


def _alternatives(plan: Plan) -> Part:
    rows = [
        [
            other.label,
            ABSENT if other.step_seconds is None else seconds_text(other.step_seconds),
            bytes_text(other.peak_bytes),
            other.verdict,
        ]
        for other in plan.alternatives
    ]
    header = ["way", "step", "fullest device", "why not"]
    if len(rows) > OPEN:
        return FoldPart(f"{len(rows)} other ways were considered", [TablePart(header, rows)])
    return TablePart(header, rows, note="Other ways that were considered.")


def _percent(share: float | None) -> str:
    return ABSENT if share is None else f"{100 * share:.0f} %"
